"""The processes of a run: none but this one, or those that torchrun started.

Decisions and figures travel between CPUs over gloo; gradients over NCCL on CUDA devices, over gloo elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mvar_models.training.signals import RunStopped

T = TypeVar("T")

# How long processes wait for the first one to prepare data, or for each other to save. gloo notices a process that died at once; one that waits
# in NCCL for it is ended by torchrun, or by NCCL's own watchdog.
_PATIENCE = timedelta(days=1)


class Processes:
    """Who takes part. Alone (`world_size` 1) nothing is communicated and no process group exists, unless FSDP asks for one.

    Attributes:
        rank, world_size: 0 and 1 when alone.
        device: this process's: `cuda:LOCAL_RANK` under torchrun, else the one that was asked for.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device, control: Any = None) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.control = control

    @classmethod
    def start(cls, device: str, *, group: bool = False) -> Processes:
        """Meet the other processes that torchrun started; `group` makes a process group even for one alone.

        Raises:
            ValueError: more processes on this machine than CUDA devices.
        """
        world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        place = torch.device(device)
        if world_size > 1 and place.type == "cuda":
            local_rank, available = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if local_rank >= available:
                raise ValueError(
                    f"process {local_rank} of this machine has no CUDA device of its own: there are {available}; start fewer processes"
                )
            place = torch.device("cuda", local_rank)
        if place.type == "cuda" and place.index is not None:
            torch.cuda.set_device(place)  # what FSDP takes, whatever its tensors are on
        if rank > 0:
            logging.getLogger("mvar_models").setLevel(logging.ERROR)  # what all would say, the first one says
        if world_size == 1 and not group:
            return cls(0, 1, place)
        if not dist.is_initialized():
            meeting: dict[str, Any] = (
                {} if world_size > 1 else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
            )
            dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", **meeting)
        return cls(rank, world_size, place, dist.new_group(backend="gloo", timeout=_PATIENCE))

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def total(self, values: Tensor) -> Tensor:
        """Sums over all processes of a CPU tensor, the same bits in each."""
        if not self.alone:
            dist.all_reduce(values, group=self.control)
        return values

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process, in every process; where it fails there, all end, and only the first says why."""
        if self.alone:
            return work()
        result: Any = None
        failure: Exception | None = None
        if self.first:
            try:
                result = work()
            except Exception as error:  # sent on below, so that nobody waits for ever
                failure = error
        sent = [(result, failure is not None)]
        dist.broadcast_object_list(sent, src=0, group=self.control)
        if failure is not None:
            raise failure
        result, failed = sent[0]
        if failed:
            raise SystemExit(1)
        return result

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Run `work` everywhere, but in the first process alone before the others: what it leaves in a cache, they find there."""
        if self.alone:
            return work()
        kept: list[T] = []
        self.on_first(lambda: kept.append(work()))
        return kept[0] if self.first else work()

    def wait(self) -> None:
        """Until all are here."""
        if not self.alone:
            dist.barrier(group=self.control)

    def all_well(self, problem: Exception | None) -> None:
        """Meet after work that each did for itself. One that failed raises its own `problem`, the others leave."""
        failures = self.total(torch.tensor([problem is not None], dtype=torch.float64)).item()
        if problem is not None:
            raise problem
        if failures:
            raise SystemExit(1)

    def close(self) -> None:
        """Part from the others; nothing is communicated any more."""
        if self.control is not None:
            dist.destroy_process_group()
            self.control = None

    def stop(self, error: Exception) -> None:
        """End all processes, each of which calls this with the same error: the first raises it."""
        if self.first:
            raise error
        raise SystemExit(getattr(error, "exit_code", 1))


def lost_process(error: Exception) -> bool:
    """Whether an error is what is seen when another process of the run has gone."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        mark in text for mark in ("gloo", "NCCL", "Connection reset by peer", "Connection closed by peer")
    )


def stopped_by_loss(rank: int, step: int, run: object, error: Exception) -> RunStopped:
    """What to raise when another process has gone, by what `error` says; `step` is the last one that is saved."""
    saved = (
        f"the last checkpoint is step {step}, go on with --resume {run}"
        if step
        else "there is no checkpoint yet, start again"
    )
    return RunStopped(
        f"process {rank} lost another process of the run, so it ends here: {saved} ({' '.join(str(error).split())[:300]})"
    )


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor (all processes must ask); a plain tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
