"""The processes that share an evaluation: what it asks of them, and this process alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Workers(Protocol):
    """Processes that run the same evaluation, such as `mvar_models.training.processes.Processes`.

    Attributes:
        rank: This process's number.
        world_size: How many there are.
    """

    rank: int
    world_size: int

    def gather(self, value: T, /) -> list[T]:
        """Return the values of all processes, in order of rank, on rank 0; elsewhere an empty list."""

    def on_first(self, work: Callable[[], T], /) -> T:
        """Run `work` on rank 0 and return its result everywhere."""

    def all_well(self, problem: Exception | None, /) -> None:
        """Wait for all; if one has a problem, it raises it and the others exit."""


class Alone:
    """This process alone."""

    rank = 0
    world_size = 1

    def gather(self, value: T) -> list[T]:
        return [value]

    def on_first(self, work: Callable[[], T]) -> T:
        return work()

    def all_well(self, problem: Exception | None) -> None:
        if problem is not None:
            raise problem
