"""The processes of a run: this one alone, or those that torchrun started, on one host or several.

Decisions and figures travel over gloo, gradients over NCCL on CUDA devices and over gloo elsewhere. A process
that ends is noticed by its closed connections; a host that is cut off closes none: see `Heartbeat`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mvar_models.devices import checked_device, default_device
from mvar_models.distributed.heartbeat import Heartbeat

T = TypeVar("T")

# Seconds without a sign of another process after which it is given up. An exchange of gradients may take
# twice as long, after which a process that is alive but stuck is given up too.
COLLECTIVE_TIMEOUT = 300.0
# Rank 0 may prepare data for hours while the others wait; `Heartbeat` tells whether it still lives.
_PATIENCE = timedelta(days=1)
# Seconds until a network disk shows on one host what another has written.
_VISIBLE_AFTER = 30.0


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
        hosts: names of the hosts by rank, once connected.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu", control: Any = None
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.hosts = [socket.gethostname()] * world_size
        self._control = control
        self._advice: Callable[[], str] = lambda: "start again"

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

    def connect(self, *, always: bool = False, timeout: float = COLLECTIVE_TIMEOUT) -> Processes:
        """Join the run's process group and return this object.

        Args:
            always: Make a group of one process too.
            timeout: Seconds without a sign of another process after which this one ends.

        Raises:
            ValueError: the timeout is not a number of at least 1.
            RunStopped: not all processes join in time.
        """
        if not 1 <= timeout < math.inf:
            raise ValueError(f"collective_timeout must be at least 1 second, got {timeout}")
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # FSDP takes the current device, whatever its tensors are on
        if self.rank > 0:
            # Every process would log the same lines.
            logging.getLogger("mvar_models").setLevel(logging.ERROR)
        if self._control is not None or (self.alone and not always):
            return self
        if not dist.is_initialized():
            self._join(timeout)
        self._control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.hosts = self.exchange(socket.gethostname())
        if Heartbeat.current is None and not self.alone and "MASTER_ADDR" in os.environ:
            heartbeat = Heartbeat(self.rank, [self.name_of(rank) for rank in range(self.world_size)], timeout)
            # torchrun says how many processes this host has; if all, nobody else needs to reach them.
            one_host = os.environ.get("LOCAL_WORLD_SIZE") == str(self.world_size)
            host = "127.0.0.1" if one_host else os.environ["MASTER_ADDR"]
            meeting = self.run_on_rank0(lambda: heartbeat.listen(host if one_host else ""))
            with self.raising_together():
                heartbeat.start(host, meeting)
        return self

    def _join(self, timeout: float) -> None:
        rendezvous: dict[str, Any] = {}
        if self.alone:
            rendezvous = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        # The watchdog of NCCL ends a process whose exchange is stuck, which would wait on the GPU for ever.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")
        os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(math.ceil(2 * timeout)))
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=2 * timeout), **rendezvous)
        except (dist.DistError, RuntimeError) as error:
            where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
            raise RunStopped(
                f"rank {self.rank} could not join the {self.world_size} processes of the run at {where}: "
                f"{_first_line(error)}"
            ) from error

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

    def exchange(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank, in every process."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and broadcast its result. If it raises, rank 0 raises and the others end."""
        if self.alone:
            return work()
        result: Any = None
        failure: BaseException | None = None
        if self.first:
            try:
                result = work()
            except (Exception, SystemExit) as error:  # broadcast first, or the other ranks would wait forever
                failure = error
        sent = [(result, _told(failure))]
        dist.broadcast_object_list(sent, src=0, group=self._control)
        if failure is not None:
            raise failure
        result, told = sent[0]
        self._end_after([told])
        return cast(T, result)

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0, then on the others: downloads are cached, errors are reported once."""
        if self.alone:
            return work()
        kept: list[T] = []
        self.run_on_rank0(lambda: kept.append(work()))
        with self.raising_together():
            if not self.first:
                kept.append(work())
        return kept[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank, on rank 0; elsewhere an empty list."""
        if self.alone:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.first else None
        dist.gather_object(value, values, dst=0, group=self._control)
        return values or []

    @contextmanager
    def raising_together(self) -> Iterator[None]:
        """Wait at the end for all processes. If some of them failed, those raise and the others end.

        What runs inside may not communicate: a process that failed is already waiting at the end.
        """
        problem: BaseException | None = None
        try:
            yield
        except (Exception, SystemExit) as error:  # tell the others first, or they would wait forever
            problem = error
        told = self.exchange(_told(problem))
        if problem is not None:
            before = zip(told[: self.rank], self.hosts)
            if (told[self.rank], self.hosts[self.rank]) in before:  # said on this host already
                raise SystemExit(1)
            raise problem
        self._end_after(told)

    def require_same(self, facts: dict[str, Any]) -> None:
        """Raise ValueError in all processes unless each gives the same facts, to the rounding of floats.

        A fact that some processes leave out is not compared.
        """
        everyone = self.exchange(facts)
        differing = []
        for name, expected in everyone[0].items():
            for rank, own in enumerate(everyone):
                if not _same(own.get(name, expected), expected):
                    here, there = self.name_of(0), self.name_of(rank)
                    differing.append(f"{name} is {expected!r} on {here} and {own[name]!r} on {there}")
                    break
        if differing:
            more = f"; {len(differing) - 4} more differ" if len(differing) > 4 else ""
            self.stop(ValueError(f"all processes of a run must agree, but {'; '.join(differing[:4])}{more}"))

    def require_shared(self, folder: str | os.PathLike[str]) -> None:
        """Raise ValueError in all processes unless they see the same folder, which is created.

        Raises:
            OSError: rank 0 cannot write there.
        """
        if self.alone:
            return
        path = Path(folder)

        def mark() -> str:
            path.mkdir(parents=True, exist_ok=True)
            name = f".shared-{secrets.token_hex(8)}"
            (path / name).touch()
            return name

        mark_file = path / self.run_on_rank0(mark)
        patience = time.monotonic() + _VISIBLE_AFTER
        while not (seen := mark_file.exists()) and time.monotonic() < patience:
            time.sleep(0.2)
        without = [rank for rank, sees in enumerate(self.exchange(seen)) if not sees]
        self.run_on_rank0(mark_file.unlink)
        if without:
            # Leave no empty folder behind.
            self.run_on_rank0(lambda: path.rmdir() if not any(path.iterdir()) else None)
            self.stop(
                ValueError(
                    f"{path} of {self.name_of(0)} is not that of {self.name_of(without[0])}: "
                    "the processes of a run need one folder that all hosts share, such as a network disk"
                )
            )

    def name_of(self, rank: int) -> str:
        """Return "rank 1 (its host)"."""
        return f"rank {rank} ({self.hosts[rank]})"

    def _end_after(self, told: list[str | None]) -> None:
        """End this process if others have failed, with a line if none of them is seen on this host."""
        failed = [rank for rank, line in enumerate(told) if line is not None]
        if not failed:
            return
        if self.hosts[self.rank] in {self.hosts[rank] for rank in failed} or not self._speaks:
            raise SystemExit(1)
        raise RunStopped(f"{self.name_of(failed[0])} failed: {told[failed[0]]}")

    @property
    def _speaks(self) -> bool:
        """Whether this is the first process of its host, which says what is said once per host."""
        return self.hosts.index(self.hosts[self.rank]) == self.rank

    def advise(self, advice: Callable[[], str]) -> None:
        """Set what the line about a lost process says about going on, such as the last checkpoint."""
        self._advice = advice
        if Heartbeat.current is not None:
            Heartbeat.current.advice = advice

    def stopped_by_loss(self, error: Exception) -> RunStopped:
        """Return the exception to raise where `error` shows that another process was lost."""
        return RunStopped(
            f"{self.name_of(self.rank)} lost another process of the run, so it ends here: {self._advice()} "
            f"({_first_line(error)})"
        )

    def leave(self) -> None:
        """Tell the others that this process goes on without the run, and expect no more signs of them."""
        if Heartbeat.current is not None:
            # Not waited for: torchrun ends this process a moment after another, and its line comes first.
            Heartbeat.current.stop(wait=False)

    def close(self) -> None:
        """Leave the run. Nothing can be communicated until `connect` is called again."""
        if self._control is not None:
            if Heartbeat.current is not None:
                Heartbeat.current.stop()
            if self.alone:
                _leave_group()
            else:
                # A second group would wait for ever on the addresses that the first left in torchrun's store,
                # so the group stays for the next run.
                atexit.unregister(_leave_group)
                atexit.register(_leave_group)
            self._control = None

    def stop(self, error: Exception) -> NoReturn:
        """End all processes, each of which calls this with the same error; one per host raises it."""
        if self._speaks:
            raise error
        raise SystemExit(getattr(error, "exit_code", 1))


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _told(problem: BaseException | None) -> str | None:
    """Return what other processes are told about a failure; None without one."""
    return None if problem is None else _first_line(problem) or type(problem).__name__


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def lost_process(error: Exception) -> bool:
    """Return whether an error shows that another process was lost."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        mark in text for mark in ("gloo", "NCCL", "Connection reset by peer", "Connection closed by peer")
    )
