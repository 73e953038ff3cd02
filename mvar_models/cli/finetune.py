"""The command `mvar finetune`."""

from __future__ import annotations

from typing import Any

import click

from mvar_models.cli.training import run_options, train_transformer
from mvar_models.training.settings import TransformerSettings

# As released; training from scratch took 300.
_EPOCHS = 80.0

_SHAPE = "the checkpoint has its own shape"
WITHOUT = {"depth": _SHAPE, "width": _SHAPE, "num_heads": _SHAPE, "shared_adaln": _SHAPE}


@click.command()
@run_options(TransformerSettings, without=WITHOUT)
def finetune(**options: Any) -> None:
    """Fine-tune a VAR into an MVAR, or an MVAR further; 80 epochs unless --steps or --epochs is given.

    On several devices or machines: torchrun --nproc-per-node 8 -m mvar_models finetune ...; --batch-size
    stays the batch of all processes together.
    """
    if not options["resume"]:
        if not options["init"]:
            raise click.UsageError("--model is missing: what should be fine-tuned?")
        if options["steps"] is None and options["epochs"] is None:
            options["epochs"] = _EPOCHS
    train_transformer(options)
