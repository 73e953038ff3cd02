"""Models to the Hub, each with a card that says what it is and how to run it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mvar_models.files import write_text

if TYPE_CHECKING:
    from mvar_models.checkpoints.pretrained import PretrainedModel
    from mvar_models.pipeline import Pipeline

_PAPERS = {"vqvae": "2404.02905", "var": "2404.02905", "mvar": "2505.12742"}
_KINDS = {
    "vqvae": "A multi-scale VQVAE: pictures to codes of a scale pyramid and back.",
    "var": "A class-conditional VAR: draws the codes of a picture scale by scale.",
    "mvar": "A class-conditional MVAR: draws the codes of a picture scale by scale, each from the preceding one alone, without a KV cache.",
}


def push_to_hub(
    model: PretrainedModel | Pipeline,
    repository: str,
    *,
    license: str = "other",
    base_model: str | None = None,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
) -> str:
    """Upload a model, or a pipeline with its VQVAE, as org/name; `from_pretrained("org/name")` then loads it.

    Args:
        license: of the weights, as the Hub writes it ("mit", "apache-2.0", ...).
        base_model: Hub id of what was fine-tuned.
        private, token, revision, message: as in `huggingface_hub`.

    Returns:
        The commit's address.

    Raises:
        PermissionError: the Hub refused; the message says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        write_text(folder / "README.md", model_card(model, repository, license, base_model))
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            return str(
                api.upload_folder(
                    repo_id=repository, folder_path=folder, commit_message=message, revision=revision
                )
            )
        except HfHubHTTPError as error:
            reason = str(error).splitlines()[0]
            raise PermissionError(
                f"the Hub refused {repository}: {reason} (log in with `hf auth login`, or pass token=)"
            ) from None


def model_card(
    model: PretrainedModel | Pipeline, repository: str, license: str = "other", base_model: str | None = None
) -> str:
    """README.md of a Hub repository: metadata, what the model is, its sampling preset, and usage that runs as it stands."""
    from mvar_models.pipeline import Pipeline

    network = model.model if isinstance(model, Pipeline) else model
    config = network.config
    lines = ["---", "library_name: mvar", f"license: {license}"]
    lines += [f"base_model: {base_model}"] if base_model else []
    lines += ["pipeline_tag: unconditional-image-generation"] if config.model_type != "vqvae" else []
    lines += [
        "tags:",
        f"- {config.model_type}",
        "- visual-autoregressive",
        "- image-generation",
        "---",
        "",
        f"# {repository}",
        "",
    ]
    lines += [
        f"{_KINDS[config.model_type]} {network.num_parameters():,} parameters. Paper: arXiv {_PAPERS[config.model_type]}.",
        "",
    ]
    lines += _facts(config)
    lines += ["", "```python", *_usage(model, repository), "```", ""]
    return "\n".join(lines)


def _facts(config: object) -> list[str]:
    names = (
        "depth",
        "width",
        "num_heads",
        "num_classes",
        "sides",
        "kernel_size",
        "dense_scales",
        "guidance_scale",
        "top_k",
        "top_p",
        "vocab_size",
    )
    rows = [f"| {name} | {getattr(config, name)} |" for name in names if hasattr(config, name)]
    return ["| setting | value |", "|---|---|", *rows]


def _usage(model: PretrainedModel | Pipeline, repository: str) -> list[str]:
    from mvar_models.pipeline import Pipeline

    name = type(model).__name__
    lines = [f"from mvar_models import {name}", ""]
    if isinstance(model, Pipeline):
        return [
            *lines,
            f'pictures = {name}.from_pretrained("{repository}")([0, 1], seed=0)',
            'pictures[0].save("0.png")',
        ]
    return [*lines, f'model = {name}.from_pretrained("{repository}")']
