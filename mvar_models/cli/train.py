"""The command `mvar train`."""

from __future__ import annotations

from typing import Any

import click

from mvar_models.cli.training import run_options, train_transformer
from mvar_models.training.settings import TransformerSettings

WITHOUT = {"init": "mvar finetune starts from a checkpoint"}


@click.command()
@run_options(TransformerSettings, without=WITHOUT)
def train(**options: Any) -> None:
    """Train a VAR or an MVAR from scratch.

    On several devices or machines: torchrun --nproc-per-node 8 -m mvar_models train ...; --batch-size stays
    the batch of all processes together.
    """
    train_transformer(options)
