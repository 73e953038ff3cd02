"""What training on ImageNet would cost: `python -m benchmarks.estimates.scaling [--gpu h100] [--gpus N]`.

All of it is computed, nothing is measured on a GPU. VAR and MVAR both use this project's kernels and blocks.
The inputs are counted FLOPs and bytes (costs.py) and messages:

    compute   product FLOPs / (peak x matmul efficiency)
              + attention FLOPs x overwork / (peak x attention efficiency)
              + bytes moved between products, and by AdamW / (bandwidth x bandwidth efficiency)
    memory    weights, gradients and AdamW's moments (16 bytes per parameter; if sharded, over all GPUs),
              buckets or the unsharded blocks, held activations of the micro-batch, and a workspace; the
              largest micro-batch that fits is taken, with checkpointing if none fits without
    messages  DDP: a ring all-reduce of float32 gradients per step. Sharded: two all-gathers and a
              reduce-scatter of the parameters per micro-batch. What backward does not hide is added.

Every assumption is a field of `Assumptions` and an option. `--check` compares the counts with real runs,
and the model of time with a step timed on this machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.core.activations import example, held_per_image
from benchmarks.core.ceilings import ceilings
from benchmarks.core.report import header, row
from benchmarks.core.shapes import ARCHITECTURES, Shape
from benchmarks.estimates.costs import Costs, costs
from benchmarks.estimates.predict import GPUS as BANDWIDTHS
from benchmarks.suites.model import run_shape

DEPTHS = (16, 20, 24, 30)
PIXELS = ("256px", "512px", "1024px")
COUNTS = (1, 8, 64)


@dataclass(frozen=True)
class Card:
    """Figures of the data sheet.

    Attributes:
        memory: Bytes.
        peak: Dense bfloat16 FLOP per second.
        bandwidth: Bytes per second of memory.
        link: Bytes per second to the other GPUs of a node, one way.
        network: A GPU's share of the bytes per second between nodes, one way.
    """

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
    """What the data sheet does not say; efficiencies are the share of its figure that large work reaches.

    Attributes:
        images: Images per epoch.
        global_batch: Images per step.
        matmul_efficiency, attention_efficiency, bandwidth_efficiency: Shares of peak.
        hidden_share: Share of backward's time during which messages cost nothing.
        hop_seconds: Latency of one hop of a ring.
        bucket_bytes: Gradients that DDP sends in one message.
        gpus_per_node: GPUs that reach each other over `link`.
        usable_memory: Share of the memory that a program can fill.
        workspace_tokens: Tokens whose float32 logits exist at once, four times.
    """

    images: int = 1_281_167
    global_batch: int = 448
    matmul_efficiency: float = 0.6
    attention_efficiency: float = 0.3
    bandwidth_efficiency: float = 0.8
    hidden_share: float = 0.8
    hop_seconds: float = 5e-6
    bucket_bytes: float = 25e6
    gpus_per_node: int = 8
    usable_memory: float = 0.92
    workspace_tokens: int = 4_096


@dataclass(frozen=True)
class Estimate:
    """One plan of training.

    Attributes:
        plan: "one GPU", "DDP" or "sharded", and whether checkpointed.
        micro: Images per GPU at a time.
        memory: Bytes per GPU.
        activations: Bytes of them that are held for backward.
        compute: Seconds per step without waiting for messages.
        sent: Bytes that a GPU sends per step.
        messages: Their number.
        exposed: Seconds per step that messages add.
        epoch_hours: Hours per epoch.
    """

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
    """Return the first of DDP, sharded, and sharded with checkpointing that fits; None if none does."""
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
    if sharded:
        # Of the sharded parameters, two blocks are gathered at a time, with their gradients.
        states = 4 * weights / gpus + 2 * weights * 2 / depth
    else:
        states = 4 * weights + (weights if gpus > 1 else 0)
    # While a block is recomputed, it holds about what plain autograd would keep of it.
    one_block = 24 * config.length * config.width * 2.0
    workspace = 4.0 * given.workspace_tokens * config.vocab_size * 4
    images_per_gpu = math.ceil(given.global_batch / gpus)
    fits = math.floor((card.memory * given.usable_memory - states - workspace) / (cost.held + one_block))
    if fits < 1:
        return None
    rounds = math.ceil(images_per_gpu / fits)
    micro = math.ceil(images_per_gpu / rounds)
    # AdamW reads four values per parameter and writes three.
    optimizer = 7 * weights / (gpus if sharded else 1)
    fixed = (rounds * cost.fixed_moved + optimizer) / (card.bandwidth * given.bandwidth_efficiency)
    compute = images_per_gpu * seconds_per_image(cost, card, given) + fixed
    sent, messages = _messages(weights, depth, gpus, given, rounds, sharded)
    link = card.link if gpus <= given.gpus_per_node else card.network
    communication = sent / link + messages * 2 * (gpus - 1) * given.hop_seconds
    # Backward is two thirds of a step.
    exposed = max(0.0, communication - given.hidden_share * compute * 2 / 3)
    return Estimate(
        plan="",
        micro=micro,
        memory=states + workspace + micro * (cost.held + one_block),
        activations=micro * cost.held,
        compute=compute,
        sent=sent,
        messages=messages,
        exposed=exposed,
        epoch_hours=math.ceil(given.images / given.global_batch) * (compute + exposed) / 3600,
    )


def seconds_per_image(cost: Costs, card: Card, given: Assumptions) -> float:
    """Return the seconds of forward and backward per image of a large batch."""
    return (
        cost.product_flops / (card.peak * given.matmul_efficiency)
        + cost.attention_flops * cost.overwork / (card.peak * given.attention_efficiency)
        + cost.moved / (card.bandwidth * given.bandwidth_efficiency)
    )


def _messages(
    weights: float, depth: int, gpus: int, given: Assumptions, rounds: int, sharded: bool
) -> tuple[float, float]:
    """Return the bytes that a GPU sends per step, and the number of messages."""
    share = (gpus - 1) / gpus
    if sharded:
        return 3 * share * weights * rounds, 3.0 * (depth + 1) * rounds
    return 2 * share * weights, math.ceil(weights / given.bucket_bytes) if gpus > 1 else 0


def lines(
    card: str, counts: tuple[int, ...], depths: tuple[int, ...], pixels: tuple[str, ...], given: Assumptions
) -> Iterator[str]:
    """Yield the assumptions, then a table of estimates."""
    sheet = CARDS[card]
    yield (
        f"COMPUTED, not measured: {card}, an epoch of {given.images:,} images, "
        f"global batch {given.global_batch}, bfloat16 autocast, float32 states"
    )
    yield f"data sheet: {_values(sheet, '.4g')}"
    yield f"assumptions: {_values(given, 'g')}"
    yield ""
    titles = ["model", "pixels", "GPUs", "plan", "micro-batch", "GB", "activations-GB", "sent-GB/step"]
    titles += ["s/step", "waiting-s/step", "h/epoch", "GPU-h/epoch", "VAR/MVAR"]
    yield from header(titles)
    for depth, size, gpus in itertools.product(depths, pixels, counts):
        pair = {arch: estimate(depth, size, arch, sheet, gpus, given) for arch in ARCHITECTURES}
        for arch, e in pair.items():
            title = [f"{arch.upper()}-d{depth}", size, str(gpus)]
            if e is None:
                yield row([*title, "does not fit", *[""] * (len(titles) - 4)])
                continue
            var = pair["var"]
            ratio = f"{var.epoch_hours / e.epoch_hours:.2f}" if arch == "mvar" and var else ""
            gigabytes = [f"{value / 1e9:.1f}" for value in (e.memory, e.activations, e.sent)]
            seconds = [f"{e.compute + e.exposed:.2f}", f"{e.exposed:.2f}"]
            hours = [f"{e.epoch_hours:.2f}", f"{e.epoch_hours * gpus:.1f}"]
            yield row([*title, e.plan, str(e.micro), *gigabytes, *seconds, *hours, ratio])


def _values(record: Card | Assumptions, form: str) -> str:
    names = [field.name for field in dataclasses.fields(record)]
    return ", ".join(f"{name} {getattr(record, name):{form}}" for name in names)


def check() -> Iterator[str]:
    """Compare counts with real runs, and the model of time with a step timed on this machine."""
    device = torch.device("cpu")
    shape = Shape(2, width=512)
    given = Assumptions(matmul_efficiency=1.0, attention_efficiency=1.0, bandwidth_efficiency=1.0)
    peak_rates = ceilings(device, {torch.float32})
    here = Card(math.inf, peak_rates.matmul[torch.float32], peak_rates.copy, 1.0, 1.0)
    for arch in ARCHITECTURES:
        model, cost = shape.build(arch, device), costs(shape, arch)
        real = held_per_image(model, model.loss, shape.dtype).bytes
        yield f"{arch}: {cost.held:,} bytes per image counted on fake tensors, {real:,} on real ones"
        with FlopCounterMode(display=False) as counter:
            model.loss(*example(model, 1, device)).backward()
        counted = cost.product_flops + cost.attention_flops
        yield f"{arch}: {counted:,.0f} FLOPs by formula, {counter.get_total_flops():,} by torch's counter"
        results = run_shape(shape, arch, "training step", device, 2.0)
        measured = next(r.timing.median for r in results if r.name == "ours" and r.timing)
        cost = dataclasses.replace(cost, overwork=1.0)  # the CPU path has no such tiles
        fixed = (cost.fixed_moved + 28.0 * cost.parameters) / here.bandwidth
        predicted = seconds_per_image(cost, here, given) + fixed
        yield (
            f"{arch}: {predicted:.3f} s per step at this machine's peak rates, {measured:.3f} s measured: "
            f"{predicted / measured:.2f} of it"
        )


def _assumption_options(command: Any) -> Any:
    for field in reversed(dataclasses.fields(Assumptions)):
        option = f"--{field.name.replace('_', '-')}"
        command = click.option(option, type=type(field.default), default=field.default)(command)
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
@click.option("--check", "checks", is_flag=True, help="Compare with real runs on this machine instead.")
@_assumption_options
def main(
    gpu: str,
    gpus: tuple[int, ...],
    depth: tuple[int, ...],
    pixels: tuple[str, ...],
    checks: bool,
    **assumptions: Any,
) -> None:
    """Print what an ImageNet epoch would cost."""
    for line in check() if checks else lines(gpu, gpus, depth, pixels, Assumptions(**assumptions)):
        click.echo(line)


if __name__ == "__main__":
    main()
