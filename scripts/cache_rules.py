"""Compare rules and budgets of a smaller KV cache, each with the whole cache of the same VAR.

    python -m scripts.cache_rules --model var-digits --per-class 30 --budgets 0.67,0.5,0.36

A row per rule and budget: Kullback-Leibler divergence in nats per code of the last scale, on the codes of the
run with the whole cache; then, with the same random numbers, equal codes and PSNR of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
import torch
from torch import Tensor

from mvar_models.cli.common import CommaList
from mvar_models.networks.scalekv import CACHE_RULES
from mvar_models.networks.selectivity import drafters_of, selectivity_index
from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.sampling.sampler import start_state
from mvar_models.sampling.settings import SamplingSettings

_BATCH = 20


@torch.no_grad()
def last_scale(
    pipeline: Pipeline, labels: Tensor, indices: Tensor, settings: SamplingSettings
) -> tuple[Tensor, int]:
    """Return log-probabilities (B, n, V) of the last scale after codes (B, L), and the bytes kept per row."""
    model, bytes_kept = pipeline.model, 0
    state, inputs = (
        start_state(model, labels, settings, guided=False),
        pipeline.vqvae.quantizer.scale_inputs(indices),
    )
    for scale in range(len(model.config.sides)):
        tokens = model.tokens_of(range(scale, scale + 1))
        if state.cache is not None:
            held = (each for pair in state.cache.entries.values() for each in pair)
            bytes_kept = sum(each.nbytes for each in held) // len(labels)
        hidden = model.step(state, inputs[:, max(tokens.start - 1, 0) : tokens.stop - 1], scale)
    return model.logits(hidden, state.class_embedding).log_softmax(-1), bytes_kept


def compare(
    pipeline: Pipeline, labels: Sequence[int], budgets: Sequence[float], drafters: int = 0, seed: int = 0
) -> Iterator[dict[str, object]]:
    """Yield a row of figures per budget and rule, and one with drafters if a number of them is given.

    Args:
        pipeline: Of a VAR.
        labels: Class of each image; image i takes seed + i.
        budgets: Values of `cache_budget`.
        drafters: Pairs of a layer and a scale that keep more in the last row of a budget.
        seed: As above.
    """
    options = {"seed": seed, "output_type": "pt", "batch_size": _BATCH, "batch_invariant": False}
    whole = pipeline(labels, **options)
    classes, plain = torch.tensor(labels), SamplingSettings.of(pipeline.model.config)
    arms = [(rule, ()) for rule in CACHE_RULES]
    if drafters:
        model, quantizer = pipeline.model, pipeline.vqvae.quantizer
        index = selectivity_index(model, quantizer, classes[:_BATCH], whole.indices[:_BATCH])
        arms.append(("attention", drafters_of(index, drafters)))
    for budget in budgets:
        for rule, pairs in arms:
            given = {"cache_budget": budget, "cache_rule": rule, "cache_drafters": pairs}
            settings, parts = SamplingSettings.of(pipeline.model.config, **given), []
            for start in range(0, len(labels), _BATCH):
                batch = classes[start : start + _BATCH], whole.indices[start : start + _BATCH]
                full, all_bytes = last_scale(pipeline, *batch, plain)
                cut, kept_bytes = last_scale(pipeline, *batch, settings)
                parts.append((full.exp() * (full - cut)).sum(-1).mean(-1))
            nats, found = torch.cat(parts), pipeline(labels, **options, **given)
            error = (found.images - whole.images).square().flatten(1).mean(1).clamp_min(1e-10)
            yield {
                "budget": budget, "rule": rule + (f", {len(pairs)} drafters" if pairs else ""),
                "KB": kept_bytes / 1e3, "KB of all": all_bytes / 1e3, "KL": nats.mean().item(),
                "KL's standard error": nats.std().item() / len(nats) ** 0.5,
                "equal codes": (found.indices == whole.indices).float().mean().item(),
                "PSNR": (-10 * error.log10()).mean().item(),
            }  # fmt: skip


@click.command()
@click.option("--model", default="var-digits", help="A VAR.")
@click.option("--per-class", default=30, help="Images of each class.")
@click.option("--budgets", type=CommaList(float), default="0.67,0.5,0.36", help="Values of --cache-budget.")
@click.option("--drafters", default=0, help="Pairs of a layer and a scale in one more row per budget.")
@click.option("--seed", default=0, help="Image i takes seed + i.")
def main(model: str, per_class: int, budgets: list[float], drafters: int, seed: int) -> None:
    """Print the table."""
    pipeline = pipeline_for(model)
    labels = [label for label in range(pipeline.model.config.num_classes) for _ in range(per_class)]
    click.echo(
        "| keys | rule | KB per row, of all | KL, nats | equal codes | PSNR |\n|---|---|---|---|---|---|"
    )
    for row in compare(pipeline, labels, budgets, drafters, seed):
        click.echo(
            "| {budget:.0%} | {rule} | {KB:.0f} of {KB of all:.0f} | {KL:.4f} +- {KL's standard error:.4f} | "
            "{equal codes:.1%} | {PSNR:.1f} |".format(**row)
        )


if __name__ == "__main__":
    main()
