"""The `mvar` command: one row per subcommand in COMMANDS.

Nothing is imported here, so that `mvar --help` does not wait for torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A subcommand of `mvar`.

    Attributes:
        target: Its click command as "module:name", imported when it runs or its own help is shown.
        summary: Its line in `mvar --help`.
    """

    target: str
    summary: str


COMMANDS: dict[str, Row] = {
    "calibrate-cache": Row(
        "mvar_models.cli.calibrate_cache:calibrate_cache", "Find the layers of a VAR that need more cache."
    ),
    "classify": Row("mvar_models.cli.classify:classify", "Classify images by their likelihood."),
    "demo": Row("mvar_models.cli.demo:demo", "Fine-tune the embedded VAR into MVAR and compare the two."),
    "doctor": Row("mvar_models.cli.demo:doctor", "Check this installation."),
    "edit": Row("mvar_models.cli.edit:edit", "In-paint, out-paint or vary an image."),
    "evaluate": Row("mvar_models.cli.evaluate:evaluate_command", "Compare images with a reference."),
    "export": Row(
        "mvar_models.cli.models:export", "Write a model for the released programs, or as ONNX graphs."
    ),
    "finetune": Row("mvar_models.cli.training:finetune", "Fine-tune a VAR into an MVAR, or an MVAR further."),
    "gallery": Row("mvar_models.cli.demo:gallery", "Write contact sheets of a model."),
    "models": Row("mvar_models.cli.models:models", "List the models of the zoo."),
    "neon": Row("mvar_models.cli.neon:neon", "Move a model away from its own samples, which needs no data."),
    "sample": Row("mvar_models.cli.sample:sample", "Generate images, or the file that FID programs read."),
    "sweep": Row("mvar_models.cli.sweep:sweep_command", "Find a model's best guidance, top-k and top-p."),
    "tokenize": Row("mvar_models.cli.tokenize:tokenize", "Encode images once, for any number of runs."),
    "train": Row("mvar_models.cli.training:train", "Train a VAR or an MVAR from scratch."),
    "train-scorer": Row("mvar_models.cli.training:train_scorer", "Train a scorer for a model's samples."),
    "train-vqvae": Row("mvar_models.cli.training:train_vqvae", "Train a VQVAE on your own images."),
}
