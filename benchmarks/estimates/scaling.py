"""Training on ImageNet, on paper: `python -m benchmarks.estimates.scaling [--gpu h100] [--gpus N]`. Nothing here is measured on a GPU.

From counted FLOPs and bytes (costs.py) and messages follows what an epoch costs, VAR beside MVAR, both with this project's kernels and blocks:

    compute   product FLOPs / (peak x matmul efficiency) + attention FLOPs x overwork of its tiles / (peak x attention efficiency)
              + bytes moved between products / (bandwidth x bandwidth efficiency), AdamW's bytes among them
    memory    weights, gradients, AdamW's moments (16 bytes a parameter; sharded: over all GPUs), buckets or the unsharded blocks, held activations
              of the micro-batch, and a workspace; the largest micro-batch that fits is taken, checkpointing where none fits without
    messages  DDP: a ring all-reduce of float32 gradients a step; sharded: two all-gathers and a reduce-scatter of the parameters a micro-batch;
              what backward does not hide is added

Every assumption is a field of `Assumptions` and a flag. `--check` compares counts with real runs, and the model of time with a step timed here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch

from benchmarks.core.shapes import Shape
from benchmarks.estimates.costs import Costs, costs
from benchmarks.estimates.predict import GPUS as BANDWIDTHS

DEPTHS = (16, 20, 24, 30)
PIXELS = ("256px", "512px", "1024px")
COUNTS = (1, 8, 64)


@dataclass(frozen=True)
class Card:
    """Data-sheet figures: bytes; dense bfloat16 FLOP/s; bytes/s of memory, and one way of a node's links and a GPU's share of the network."""

    memory: float
    peak: float
    bandwidth: float
    link: float
    network: float


CARDS = {
    "h100": Card(80e9, 989e12, BANDWIDTHS["H100"].bandwidth, 450e9, 50e9),
    "h200": Card(141e9, 989e12, BANDWIDTHS["H200"].bandwidth, 450e9, 50e9),
    "a100": Card(80e9, 312e12, BANDWIDTHS["A100"].bandwidth, 300e9, 25e9),
    "rtx4090": Card(24e9, 165e12, 1.008e12, 25e9, 12.5e9),
}


@dataclass(frozen=True)
class Assumptions:
    """Efficiencies are shares of the data sheet's figure that large work reaches."""

    images: int = 1_281_167
    global_batch: int = 448
    matmul_efficiency: float = 0.6
    attention_efficiency: float = 0.3
    bandwidth_efficiency: float = 0.8
    hidden_share: float = 0.8  # of backward's time, under which messages go unnoticed
    hop_seconds: float = 5e-6
    bucket_bytes: float = 25e6
    gpus_per_node: int = 8
    usable_memory: float = 0.92
    workspace_tokens: int = 4_096  # whose float32 logits exist at once, four times


@dataclass(frozen=True)
class Estimate:
    """Bytes on a GPU, seconds a step, of them not hidden communication, and an epoch's hours; `micro` pictures at a time."""

    plan: str
    micro: int
    memory: float
    activations: float
    compute: float
    sent: float
    messages: float
    exposed: float
    epoch_hours: float


def estimate(
    depth: int, pixels: str, arch: str, card: Card, gpus: int, given: Assumptions
) -> Estimate | None:
    """The first of DDP, sharded, sharded with checkpointing that fits; None when none does."""
    for sharded, checkpointed in ((False, False), (True, False), (True, True)):
        if sharded and gpus == 1 and not checkpointed:
            continue
        cost = costs(Shape(depth, pixels, dtype=torch.bfloat16), arch, checkpointed)
        found = _planned(cost, depth, pixels, card, gpus, given, sharded and gpus > 1)
        if found is not None:
            kind = "one GPU" if gpus == 1 else "sharded" if sharded else "DDP"
            return dataclasses.replace(found, plan=f"{kind}, checkpointed" if checkpointed else kind)
    return None


def _planned(
    cost: Costs, depth: int, pixels: str, card: Card, gpus: int, given: Assumptions, sharded: bool
) -> Estimate | None:
    config = Shape(depth, pixels).config("var")
    weights = 4.0 * cost.parameters
    states = (
        4 * weights / gpus + 2 * weights * 2 / depth
        if sharded
        else 4 * weights + (weights if gpus > 1 else 0)
    )
    # Backward of one block has about what plain autograd would keep of it.
    one_block = 24 * config.length * config.width * 2.0
    workspace = 4.0 * given.workspace_tokens * config.vocab_size * 4
    a_gpu = math.ceil(given.global_batch / gpus)
    fits = math.floor((card.memory * given.usable_memory - states - workspace) / (cost.held + one_block))
    if fits < 1:
        return None
    rounds = math.ceil(a_gpu / fits)
    micro = math.ceil(a_gpu / rounds)
    picture = picture_seconds(cost, card, given)
    bandwidth = card.bandwidth * given.bandwidth_efficiency
    optimizer = 7 * weights / (gpus if sharded else 1)  # AdamW reads four and writes three values a parameter
    compute = a_gpu * picture + (rounds * cost.fixed_moved + optimizer) / bandwidth
    sent, messages = _messages(weights, depth, gpus, given, rounds, sharded)
    link = card.link if gpus <= given.gpus_per_node else card.network
    communication = sent / link + messages * 2 * (gpus - 1) * given.hop_seconds
    exposed = max(0.0, communication - given.hidden_share * compute * 2 / 3)
    hours = math.ceil(given.images / given.global_batch) * (compute + exposed) / 3600
    activations = micro * cost.held
    return Estimate(
        "",
        micro,
        states + workspace + activations + micro * one_block,
        activations,
        compute,
        sent,
        messages,
        exposed,
        hours,
    )


def picture_seconds(cost: Costs, card: Card, given: Assumptions) -> float:
    """Forward and backward of one picture of many."""
    return (
        cost.product_flops / (card.peak * given.matmul_efficiency)
        + cost.attention_flops * cost.overwork / (card.peak * given.attention_efficiency)
        + cost.moved / (card.bandwidth * given.bandwidth_efficiency)
    )


def _messages(
    weights: float, depth: int, gpus: int, given: Assumptions, rounds: int, sharded: bool
) -> tuple[float, float]:
    """Bytes that a GPU sends a step, and messages."""
    share = (gpus - 1) / gpus
    if sharded:
        return 3 * share * weights * rounds, 3.0 * (depth + 1) * rounds
    return 2 * share * weights, math.ceil(weights / given.bucket_bytes) if gpus > 1 else 0


def lines(
    card: str, counts: tuple[int, ...], depths: tuple[int, ...], pixels: tuple[str, ...], given: Assumptions
) -> Iterator[str]:
    sheet = CARDS[card]
    yield f"ON PAPER, not measured: {card}, an epoch of {given.images:,} images, global batch {given.global_batch}, bfloat16 autocast, float32 states"
    yield f"data sheet: {', '.join(f'{f.name} {getattr(sheet, f.name):.4g}' for f in dataclasses.fields(sheet))}"
    yield f"assumptions: {', '.join(f'{f.name} {getattr(given, f.name):g}' for f in dataclasses.fields(given))}"
    yield ""
    titles = "model pixels GPUs plan micro-batch GB activations-GB sent-GB/step s/step waiting-s/step h/epoch GPU-h/epoch VAR/MVAR"
    yield f"| {' | '.join(titles.split())} |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for depth in depths:
        for size in pixels:
            for gpus in counts:
                pair = {arch: estimate(depth, size, arch, sheet, gpus, given) for arch in ("var", "mvar")}
                for arch, e in pair.items():
                    title = f"| {arch.upper()}-d{depth} | {size} | {gpus} |"
                    if e is None:
                        yield f"{title} does not fit | | | | | | | | | |"
                        continue
                    ratio = (
                        f"{pair['var'].epoch_hours / e.epoch_hours:.2f}"
                        if arch == "mvar" and pair["var"]
                        else ""
                    )
                    yield (
                        f"{title} {e.plan} | {e.micro} | {e.memory / 1e9:.1f} | {e.activations / 1e9:.1f} | {e.sent / 1e9:.1f} "
                        f"| {e.compute + e.exposed:.2f} | {e.exposed:.2f} | {e.epoch_hours:.2f} | {e.epoch_hours * gpus:.1f} | {ratio} |"
                    )


def check() -> Iterator[str]:
    """Counts against real runs, and the model of time against a step timed on this machine's ceilings."""
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.core import machine
    from benchmarks.estimates.activations import a_picture, example
    from benchmarks.suites import model as model_suite

    device = torch.device("cpu")
    shape = Shape(2, width=512)
    given = Assumptions(matmul_efficiency=1.0, attention_efficiency=1.0, bandwidth_efficiency=1.0)
    ceilings = machine.ceilings(device, {torch.float32})
    here = Card(math.inf, ceilings.matmul[torch.float32], ceilings.copy, 1.0, 1.0)
    for arch in ("var", "mvar"):
        model, cost = shape.build(arch, device), costs(shape, arch)
        real = a_picture(model, model.loss, shape.dtype).bytes
        yield f"{arch}: {cost.held:,} bytes a picture counted on fake tensors, {real:,} on real ones"
        with FlopCounterMode(display=False) as counter:
            model.loss(*example(model, 1, device)).backward()
        counted = cost.product_flops + cost.attention_flops
        yield f"{arch}: {counted:,.0f} FLOPs by formula, {counter.get_total_flops():,} by FlopCounterMode"
        results = model_suite.run_shape(shape, arch, "training step", device, 2.0)
        measured = next(r.timing.median for r in results if r.name == "ours" and r.timing)
        cost = dataclasses.replace(cost, overwork=1.0)  # the CPU's tiles are not the kernels'
        fixed = (cost.fixed_moved + 28.0 * cost.parameters) / here.bandwidth
        predicted = picture_seconds(cost, here, given) + fixed
        yield f"{arch}: {predicted:.3f} s a step at this machine's measured ceilings, {measured:.3f} s measured: {predicted / measured:.2f} of it"


def _assumption_flags(command: Any) -> Any:
    for f in reversed(dataclasses.fields(Assumptions)):
        command = click.option(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default)(
            command
        )
    return command


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--gpu", type=click.Choice(list(CARDS)), default="h100")
@click.option(
    "--gpus", type=click.IntRange(min=1), multiple=True, default=COUNTS, help="May be given several times."
)
@click.option("--depth", type=int, multiple=True, default=DEPTHS, help="May be given several times.")
@click.option(
    "--pixels", type=click.Choice(PIXELS), multiple=True, default=PIXELS, help="May be given several times."
)
@click.option(
    "--check", "checks", is_flag=True, help="Compare counts and the model of time with this machine instead."
)
@_assumption_flags
def main(
    gpu: str,
    gpus: tuple[int, ...],
    depth: tuple[int, ...],
    pixels: tuple[str, ...],
    checks: bool,
    **assumptions: Any,
) -> None:
    """Print what an ImageNet epoch would cost."""
    found = check() if checks else lines(gpu, gpus, depth, pixels, Assumptions(**assumptions))
    for line in found:
        click.echo(line)


if __name__ == "__main__":
    main()
