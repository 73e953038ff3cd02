"""The command `mvar calibrate-cache`."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from mvar_models.checkpoints.locate import FORMS
from mvar_models.cli.common import OutFile
from mvar_models.cli.drawing_options import chosen_labels, seed_option
from mvar_models.data.open import open_images
from mvar_models.evaluation.likelihood import labels_of_model
from mvar_models.networks.selectivity import drafters_of, selectivity_index
from mvar_models.pipeline import pipeline_for
from mvar_models.sampling.progress import SAMPLING, counting
from mvar_models.sampling.settings import SamplingSettings
from mvar_models.tokens.encode import tokenize


@click.command("calibrate-cache")
@click.option("--model", required=True, help=f"Model: {FORMS}.")
@click.option("--labels", default=None, help="Classes of the samples. Default: all, or --n spread evenly.")
@click.option("--data", default=None, help="Images to take in place of samples, as for `mvar train`.")
@click.option("--n", default=10, type=click.IntRange(min=1), show_default=True, help="Images.")
@seed_option("Sample i takes seed + i.")
@click.option(
    "--drafters", type=click.IntRange(min=0), default=None,
    help="Pairs of a layer and a scale. Default: one in eight.",
)  # fmt: skip
@click.option("--top", default=8, type=click.IntRange(min=1), show_default=True, help="K' of the index.")
@click.option("--device", default=None, help="Default: cuda if available, else cpu.")
@click.option("--out", "-o", required=True, type=OutFile(".json"), help="Preset to write.")
def calibrate_cache(
    model: str, labels: str | None, data: str | None, n: int, seed: int, drafters: int | None, top: int,
    device: str | None, out: Path,
) -> None:  # fmt: skip
    """Find the layers that need more cache than others, the drafters of ScaleKV, by how a VAR attends.

    Writes the checkpoint's preset with them: `mvar sample --preset FILE --cache-budget 0.2`. Without a preset
    all layers keep the same number of keys. Whether drafters help a model is to be measured.
    """
    if labels is not None and data is not None:
        raise click.UsageError("--labels is of samples and --data takes their place; leave one out")
    pipeline = pipeline_for(model, device=device)
    network, config = pipeline.model, pipeline.model.config
    if data is not None:
        source = open_images(data, resolution=pipeline.vqvae.config.resolution)
        members = source.train[np.linspace(0, len(source.train) - 1, min(n, len(source.train))).astype(int)]
        examples = tokenize(pipeline.vqvae, source, members)
        indices = examples.batch(np.arange(len(examples)))[1].to(network.device)
        classes = torch.from_numpy(labels_of_model(network, source, examples.labels))
    else:
        names = chosen_labels(labels, pipeline)
        spread = np.linspace(0, config.num_classes - 1, min(n, config.num_classes)).astype(int).tolist()
        known = pipeline.numbers_of(spread if names is None else names)
        wanted = [known[each % len(known)] for each in range(n)]
        with counting(SAMPLING, len(wanted)):
            indices = pipeline(wanted, seed=seed, output_type="latent").indices
        classes = torch.tensor(wanted, device="cpu")
    index = selectivity_index(network, pipeline.vqvae.quantizer, classes.to(network.device), indices, top)
    count = round(index.numel() / 8) if drafters is None else min(drafters, index.numel())
    pairs = sorted(drafters_of(index, count))
    SamplingSettings.of(config, cache_drafters=pairs).write(out)
    click.echo(
        f"drafters: {', '.join(f'layer {layer} at scale {scale}' for layer, scale in pairs) or 'none'}"
    )
    click.echo(f"written to {out}")
