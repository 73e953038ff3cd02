"""The processes of a run: this one alone, or those that torchrun started.

Decisions and figures travel over gloo, gradients over NCCL on CUDA devices and over gloo elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mvar_models.devices import checked_device, default_device

T = TypeVar("T")

# Rank 0 may prepare data for hours while the others wait. A peer that died is not waited for: gloo notices it
# at once; a process that waits for it inside NCCL is ended by torchrun or by NCCL's own watchdog.
_PATIENCE = timedelta(days=1)


class RunStopped(RuntimeError):
    """A run ended before its last step; its last checkpoint is intact.

    Attributes:
        exit_code: The exit code of the command.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Processes:
    """This process's place among those of a run.

    Alone (`world_size` 1) nothing is communicated, and no process group exists unless FSDP asks for one.

    Attributes:
        rank: this process's number, 0 when alone.
        world_size: how many processes take part.
        device: this process's own device.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu", control: Any = None
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self._control = control

    @classmethod
    def from_environment(cls, device: torch.device | str | int | None = None) -> Processes:
        """Read rank, world size and device as torchrun sets them. To communicate, call `connect` next.

        Args:
            device: a device by name or number, None for a GPU where there is one. Of several processes with a
                LOCAL_RANK, each takes the CUDA device of that number.

        Raises:
            ValueError: there is no such device, or this process has no CUDA device of its own.
        """
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        place = checked_device(default_device() if device is None else device)
        if world_size > 1 and place.type == "cuda":
            local_rank, available = (
                int(os.environ.get("LOCAL_RANK", place.index or 0)),
                torch.cuda.device_count(),
            )
            if local_rank >= available:
                raise ValueError(
                    f"process {local_rank} of this machine has no CUDA device of its own: "
                    f"there are {available}; start fewer processes"
                )
            place = torch.device("cuda", local_rank)
        return cls(rank, world_size, place)

    def connect(self, *, always: bool = False) -> Processes:
        """Join the run's process group and return this object; `always` makes a group of one too."""
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # FSDP takes the current device, whatever its tensors are on
        if self.rank > 0:
            # Every process would log the same lines.
            logging.getLogger("mvar_models").setLevel(logging.ERROR)
        if self.alone and not always:
            return self
        if not dist.is_initialized():
            rendezvous: dict[str, Any] = (
                {"store": dist.HashStore(), "rank": 0, "world_size": 1} if self.alone else {}
            )
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo", **rendezvous
            )
        self._control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return self

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def total(self, values: Tensor) -> Tensor:
        """Sum a CPU tensor over all processes, in place; every process gets the same bits."""
        if not self.alone:
            dist.all_reduce(values, group=self._control)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor on this process's device over all processes, in place."""
        if not self.alone:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def on_first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and broadcast its result. If it raises, rank 0 raises and the others exit."""
        if self.alone:
            return work()
        result: Any = None
        failure: Exception | None = None
        if self.first:
            try:
                result = work()
            except Exception as error:  # broadcast first, or the other ranks would wait forever
                failure = error
        sent = [(result, failure is not None)]
        dist.broadcast_object_list(sent, src=0, group=self._control)
        if failure is not None:
            raise failure
        result, failed = sent[0]
        if failed:
            raise SystemExit(1)
        return result

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0, then on the others: downloads are cached, errors are reported once."""
        if self.alone:
            return work()
        kept: list[T] = []
        self.on_first(lambda: kept.append(work()))
        return kept[0] if self.first else work()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank, on rank 0; elsewhere an empty list."""
        if self.alone:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.first else None
        dist.gather_object(value, values, dst=0, group=self._control)
        return values or []

    @contextmanager
    def raising_together(self) -> Iterator[None]:
        """Wait at the end for all processes. If some of them failed, those raise and the others exit."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:  # tell the others first, or they would wait forever
            problem = error
        failures = self.total(torch.tensor([problem is not None], dtype=torch.float64)).item()
        if problem is not None:
            raise problem
        if failures:
            raise SystemExit(1)

    def close(self) -> None:
        """Leave the process group; nothing can be communicated afterwards."""
        if self._control is not None:
            dist.destroy_process_group()
            self._control = None

    def stop(self, error: Exception) -> NoReturn:
        """End all processes, each of which calls this with the same error; rank 0 raises it."""
        if self.first:
            raise error
        raise SystemExit(getattr(error, "exit_code", 1))


def lost_process(error: Exception) -> bool:
    """Whether `error` is how the loss of another process shows."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        mark in text for mark in ("gloo", "NCCL", "Connection reset by peer", "Connection closed by peer")
    )


def stopped_by_loss(rank: int, step: int, run: object, error: Exception) -> RunStopped:
    """The exception to raise when another process was lost; `step` is the last one saved."""
    saved = (
        f"the last checkpoint is step {step}, continue with --resume {run}"
        if step
        else "there is no checkpoint yet, start again"
    )
    reason = " ".join(str(error).split())[:300]
    return RunStopped(f"process {rank} lost another process of the run, so it ends here: {saved} ({reason})")
