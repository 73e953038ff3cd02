"""Training of tiny models on synthetic codes, in one process or as one of two."""

from pathlib import Path

import numpy as np
import torch

from mvar_models.data.digits import Digits
from mvar_models.distributed import Processes
from mvar_models.tokens.token_set import TokenSet
from mvar_models.training.build import build_vqvae
from mvar_models.training.loop import Loop
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import TransformerSettings, VQVAESettings
from mvar_models.training.transformer_task import TransformerTask
from mvar_models.training.vqvae_task import VQVAETask

from tiny_models import tiny_mvar, tiny_vqvae

# Name -> settings of runs that several processes must do as one does. A batch of 7 has no equal parts.
CASES = {
    "ddp": dict(ema=0.9),
    "uneven": dict(batch_size=7, accumulate=2),
    "alternating": dict(schedule="alternating", steps=10),
    "progressive": dict(schedule="progressive", steps=6),
    "fsdp": dict(fsdp=True, ema=0.9, activation_checkpointing=True),
    "fsdp_alternating": dict(fsdp=True, schedule="alternating", steps=10, accumulate=2),
    "fsdp_uneven": dict(fsdp=True, batch_size=7, accumulate=3),
}
FP16 = dict(fsdp=True, precision="fp16", steps=16)
# Weights that hardly move, so that rounding changes no code that is drawn.
EVALUATED = dict(evaluate_every=1, evaluate_features="pixels", steps=2, lr=1e-9)
# A run whose checkpoint of step 2 is continued by another number of processes.
SHARED = dict(fsdp=True, ema=0.9, steps=5)


def tiny_tokens(copies=2, count=30):
    rng = np.random.default_rng(0)
    return TokenSet(rng.integers(0, 24, (copies, count, 21), dtype=np.uint16), np.arange(count) % 3)


def new_loop(folder, processes=None, report=None, **settings):
    given = dict(data="tiny", steps=4, batch_size=6, lr=1e-2, drop_path=0.3, label_drop=0.3)
    config = TransformerSettings(**{**given, **settings, "out": str(folder)})
    processes = processes or Processes.from_environment("cpu").connect(always=config.fsdp)
    begun = (Path(folder) / "config.yaml").exists()
    run = processes.run_on_rank0(lambda: RunFolder(folder) if begun else RunFolder.create(config))
    task = TransformerTask(tiny_mvar(), tiny_vqvae(), tiny_tokens(), tiny_tokens(1, 17), config)
    loop = Loop(task, config, run, report, processes)
    loop.resume()
    return loop


# A discriminator from the first step on; 7 images have no equal parts. Later steps enlarge rounding.
ADVERSARIAL = dict(adversarial=0.5, adversarial_start=0, steps=2)


def new_vqvae_loop(folder, processes=None, **settings):
    """A small VQVAE of the digits, long enough for dead codes to be restarted once, in step 21."""
    processes = processes or Processes.from_environment("cpu").connect()
    given = dict(steps=22, batch_size=7, lr=1e-4, vocab_size=32, z_channels=4, sides=(1, 2, 4))
    config = VQVAESettings(data="digits", out=str(folder), **{**given, **settings})
    run = processes.run_on_rank0(lambda: RunFolder.create(config))
    source = Digits(16)
    return Loop(
        VQVAETask(build_vqvae(config), source, source.train, source.held_out[:40], config),
        config,
        run,
        None,
        processes,
    )


def save_at_step_2(folder):
    loop = new_loop(folder, **SHARED)
    for index in range(2):
        values, _ = loop.step(index)
        if loop.processes.first:
            loop.writer.log(values)
    loop.save_checkpoint(2)


def train_all(out: Path) -> None:
    """Train every case in folders below `out`."""
    from torch.distributed.tensor import DTensor

    for name, settings in CASES.items():
        loop = new_loop(out / name, **settings)
        sharded = [isinstance(parameter, DTensor) for parameter in loop.task.model.parameters()]
        assert all(sharded) if settings.get("fsdp") else not any(sharded), (
            f"{name}: {sum(sharded)} of {len(sharded)} parameters are DTensor"
        )
        if settings.get("fsdp") and loop.processes.world_size > 1:
            held = sum(parameter.to_local().numel() for parameter in loop.task.model.parameters())
            assert held < 0.6 * sum(parameter.numel() for parameter in loop.task.model.parameters()), (
                "each process should hold its share"
            )
        loop.fit()
    new_loop(out / "fp16", **FP16).fit()
    new_loop(out / "evaluated", **EVALUATED).fit()
    new_loop(out / "fsdp_evaluated", **EVALUATED, fsdp=True, ema=0.9).fit()
    new_vqvae_loop(out / "vqvae").fit()
    new_vqvae_loop(out / "adversarial", **ADVERSARIAL).fit()
    save_at_step_2(out / "two_to_one")
    new_loop(out / "one_to_two", **SHARED).fit()
    torch.distributed.destroy_process_group()
