"""Starts of training on which two processes, on hosts of different names, do not agree.

Each rank, a fork of its own, writes what every case ended with to TOP/rank-N.json.
"""

import dataclasses
import json
import os
import shutil
import socket
import sys
from pathlib import Path

from mvar_models.cli.main import main as main_command
from mvar_models.distributed import Processes
from mvar_models.training import runs
from mvar_models.training.settings import TransformerSettings, VQVAESettings

from run_cases import make_data
from tiny_models import tiny_mvar, tiny_vqvae

# Another value of each setting; what is not listed is changed by its type.
OTHER = {
    "data": "changed", "out": "elsewhere", "init": "model", "vqvae": "other-vae", "arch": "var",
    "betas": (0.8, 0.9), "precision": "bf16", "evaluate_features": "pixels", "evaluate_weights": "w.pth",
    "schedule": "progressive", "scale_weights": "density", "sides": (1, 2), "channel_multipliers": (1, 2, 2),
    "perceptual_network": "efficientnet-lite0",
}  # fmt: skip
KINDS = (TransformerSettings, VQVAESettings)
SHAPE = dict(depth=2, width=32, num_heads=2, kernel_size=3, dense_scales=2, steps=2, batch_size=6)


def other_value(field):
    """Return a value that differs from the one that `start` gives."""
    if field.name in OTHER:
        return OTHER[field.name]
    value = SHAPE.get(field.name, field.default)
    if value is None:
        return 0.5 if field.name in ("ema", "drop_path") else 1
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 0.75 + value / 8


def changed_settings(kind):
    # Devices are numbered per host, and a VQVAE refuses two.
    left_out = {"device", *(("fsdp", "activation_checkpointing") if kind is VQVAESettings else ())}
    return [field for field in dataclasses.fields(kind) if field.name not in left_out]


def start(kind, **given):
    if kind is VQVAESettings:
        return runs.start_vqvae_run(**{**dict(data="data", out="run", steps=2, batch_size=6), **given})
    given = {**SHAPE, **dict(data="data", vqvae="vae", out="run"), **given}
    return runs.start_transformer_run(**given)


def command(*words: str) -> None:
    main_command(list(words), standalone_mode=False)


def prepare(top: Path) -> None:
    """Write what the cases need: shared by all, and one working folder per host that differs in content."""
    for host in ("host0", "host1"):
        folder = make_data(top / host)
        shutil.copytree(folder / "data", folder / "changed")
        tiny_vqvae().save_pretrained(folder / "other-vae")
        tiny_mvar().save_pretrained(folder / "model")
    second = top / "host1"
    (second / "changed" / "ant" / "0.png").unlink()
    shutil.rmtree(second / "other-vae")
    other = tiny_vqvae()
    other.quantizer.codebook.weight.data.mul_(1.01)
    other.save_pretrained(second / "other-vae")
    shutil.copytree(second / "data", top / "host0" / "only-here")


def cases(rank: int, shared: Path):
    """Yield names and calls; a call may differ between the ranks."""
    for kind in KINDS:
        for field in changed_settings(kind):
            values = {field.name: other_value(field)} if rank else {}
            yield f"{kind.kind} {field.name}", lambda kind=kind, values=values: start(kind, **values)
    yield "a wrong setting", lambda: start(VQVAESettings, lr=-1.0 if rank else 1.0)
    yield "no data", lambda: start(VQVAESettings, data="only-here")
    yield "separate folders", lambda: start(TransformerSettings, out="run")
    yield "nothing to resume", lambda: runs.start_transformer_run(resume="run")
    out = str(shared / "run")
    yield "other data", lambda: runs.train_transformer(start(TransformerSettings, data="changed", out=out))
    yield (
        "other vqvae",
        lambda: runs.train_transformer(
            start(TransformerSettings, vqvae="other-vae", out=out, accept_psnr=True)
        ),
    )
    yield "other vqvae data", lambda: runs.train_vqvae(start(VQVAESettings, data="changed", out=out))
    evaluate = ["evaluate", "data", "--reference", "data", "--features", "pixels", "--out"]
    yield "evaluation of others", lambda: command(*evaluate, "figures", "--batch-size", f"{8 + rank}")
    yield (
        "separate evaluations",
        lambda: command(*evaluate, "figures", "--model", "model", "--per-class", "1"),
    )
    versions = runs.versions()
    runs.versions = lambda: {**versions, "torch": f"2.6.{rank}"}
    yield "another version", lambda: start(VQVAESettings)


def walk(top: Path) -> None:
    rank = int(os.environ["RANK"])
    socket.gethostname = lambda: f"host{rank}"
    processes = sys.modules[Processes.__module__]
    processes._VISIBLE_AFTER = 1.0
    os.chdir(top / f"host{rank}")
    ended = {}
    for name, call in cases(rank, top):
        try:
            call()
            ended[name] = "it went on"
        except (Exception, SystemExit) as error:
            ended[name] = f"{type(error).__name__}: {error}"
        assert not (Path("run") / "config.yaml").exists() or rank == 0, name
    (top / f"rank-{rank}.json").write_text(json.dumps(ended))
    Processes.from_environment("cpu").connect().close()
