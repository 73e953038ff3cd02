"""Two steps of every kind of training with every flag, in one process or as one of two.

Rank 0 writes what each combination ended with to TOP/MODE.json.
"""

import functools
import json
import shutil
from pathlib import Path

from torch import nn

from mvar_models.distributed import Processes
from mvar_models.training import runs, vqvae_losses

from chosen_cases import once
from run_cases import make_data, succeed
from tiny_models import tiny_var

SHAPE = dict(depth=2, width=32, num_heads=2)
TASKS = {
    "var": dict(arch="var", **SHAPE),
    "mvar": dict(arch="mvar", kernel_size=3, dense_scales=2, **SHAPE),
    "markov-var": dict(arch="markov-var", depth=2, width=128, num_heads=2),
    "finetune": dict(arch="mvar", init="var", kernel_size=3, dense_scales=2),
    "vqvae": dict(vocab_size=24, z_channels=4, sides=(1, 2, 4)),
}
# Mode -> row of the table in docs/training.md.
MODES = {"one": "one process", "ddp": "several processes", "fsdp": "--fsdp"}
NONE = "none"
FLAGS = {
    NONE: {},
    "--ema": dict(ema=0.9),
    "--accumulate": dict(accumulate=2),
    "--precision bf16": dict(precision="bf16"),
    "--precision fp16": dict(precision="fp16"),
    "--compile": dict(compile=True),
    "--activation-checkpointing": dict(activation_checkpointing=True),
    "--evaluate-every": dict(evaluate_every=1, evaluate_features="pixels", evaluate_images=6),
    "--sample-every": dict(sample_every=1),
    "--schedule alternating": dict(schedule="alternating"),
    "--schedule progressive": dict(schedule="progressive"),
    "--perceptual": dict(perceptual=0.1),
    "--adversarial": dict(adversarial=0.1, adversarial_start=0),
    "--resume": {},
}

# (mode, task, flag): every task and every mode without a flag, and every flag with some task in some mode.
CHOSEN = [(mode, task, NONE) for mode, task in once(list(MODES), list(TASKS))]
CHOSEN += once(list(MODES), list(TASKS), [flag for flag in FLAGS if flag != NONE])


class Colours(nn.Module):
    """A perceptual loss without weights to download."""

    def forward(self, images, originals):
        return (images.mean((2, 3)) - originals.mean((2, 3))).abs().mean()


def prepare(top: Path) -> None:
    make_data(top)
    tiny_var().save_pretrained(top / "var")
    tokenize = ["tokenize", "--data", top / "data", "--vqvae", top / "vae", "--out", top / "codes"]
    succeed(*tokenize)


def train(top: Path, task: str, mode: str, flag: str) -> None:
    given = dict(steps=2, batch_size=4, save_every=1, fsdp=mode == "fsdp", **TASKS[task], **FLAGS[flag])
    given["out"] = str(top / mode / task / flag)
    if task == "vqvae":
        start, fit = runs.start_vqvae_run, runs.train_vqvae
        given["data"] = str(top / "data")
    else:
        start, fit = runs.start_transformer_run, runs.train_transformer
        given |= dict(data=str(top / "codes"), vqvae=str(top / "vae"))
        if "init" in given:
            given["init"] = str(top / given["init"])
    run = start(**given)
    fit(run)
    if flag == "--resume":
        shorten(run)
        fit(start(resume=given["out"]))
    steps = [line["step"] for line in run.folder.metrics() if "loss" in line]
    assert steps == [1, 2], steps


def shorten(run) -> None:
    """Leave the run as if it had ended after its first step."""

    def remove():
        shutil.rmtree(run.folder.checkpoints / "step-000002")
        shutil.rmtree(run.folder.model)

    Processes.from_environment("cpu").connect().run_on_rank0(remove)


def walk(top: Path, modes: list[str]) -> None:
    vqvae_losses.PERCEPTUAL["lpips"] = Colours
    # That dynamo captures it is what matters; a C++ compiler would take minutes.
    nn.Module.compile = functools.partialmethod(nn.Module.compile, backend="aot_eager")
    for mode in modes:
        ended = {}
        for task, flag in (rest for chosen, *rest in CHOSEN if chosen == mode):
            out = top / mode / task / flag
            try:
                train(top, task, mode, flag)
                ended[f"{task} {flag}"] = "trained" if (out / "model").is_dir() else "no model"
            except (Exception, SystemExit) as error:
                written = f" ({out} was written)" if out.exists() else ""
                ended[f"{task} {flag}"] = f"{type(error).__name__}: {error}{written}"
        if Processes.from_environment("cpu").first:
            (top / f"{mode}.json").write_text(json.dumps(ended, indent=1))
    Processes.from_environment("cpu").connect().close()
