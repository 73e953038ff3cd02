"""Barriers in shared memory, at which products arrive when they have run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from emulated_gpu.faults import Fault
from emulated_gpu.operands import Action, Operands
from emulated_gpu.table import instruction


@dataclass
class _Barrier:
    """A phase ends when as many have arrived as are expected.

    Attributes:
        expected: arrivals per phase.
        missing: arrivals until this phase ends.
        phase: number of the phase.
    """

    expected: int
    missing: int
    phase: int = 0


class Barriers:
    """The barriers of one program, by their address."""

    def __init__(self) -> None:
        self._at: dict[int, _Barrier] = {}

    def init(self, address: int, expected: int) -> None:
        """Make a barrier; its first phase is 0."""
        self._at[address] = _Barrier(expected, expected)

    def invalidate(self, address: int) -> None:
        """Take a barrier away."""
        self._known(address)
        del self._at[address]

    def arrive(self, address: int) -> None:
        """Count one arrival, the last of which ends the phase."""
        barrier = self._known(address)
        barrier.missing -= 1
        if barrier.missing == 0:
            barrier.missing, barrier.phase = barrier.expected, barrier.phase + 1

    def passed(self, address: int, parity: int) -> bool:
        """Whether the phase of this parity has ended."""
        return self._known(address).phase % 2 != parity

    def _known(self, address: int) -> _Barrier:
        if address not in self._at:
            raise Fault("an mbarrier is used that was not initialized")
        return self._at[address]


def _one(u: Any, values: Any) -> int:
    """The value of the active threads, which must agree."""
    spread = np.broadcast_to(values, (u.size,))
    active = spread if u.mask is None else spread[u.mask]
    if (active != active[0]).any():
        raise Fault("threads name different mbarriers")
    return int(active[0])


@instruction("mbarrier")
def barrier(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if mods[0] == "init":
        address, count = operands.address(texts[0], "shared"), operands.read(texts[1], "u32")

        def init(u: Any) -> None:
            place = _one(u, address(u))
            shared = u.program.shared
            shared.writes(shared.places(np.array([place]), 8, 8), u)
            u.program.barriers.init(place, _one(u, count(u)))

        return init
    if mods[0] == "inval":
        address = operands.address(texts[0], "shared")
        return lambda u: u.program.barriers.invalidate(_one(u, address(u)))
    if mods[:2] != ["try_wait", "parity"]:
        raise ValueError("kind of mbarrier")
    write, parity = operands.write(texts[0]), operands.read(texts[2], "u32")
    address = operands.address(texts[1], "shared")

    def try_wait(u: Any) -> None:
        place, wanted = _one(u, address(u)), _one(u, parity(u)) & 1
        barriers = u.program.barriers
        while not barriers.passed(place, wanted) and u.program.tensor_memory.run_until(place):
            pass
        passed = barriers.passed(place, wanted)
        # Another warp may have to issue first what this one waits for.
        u.waits = not passed
        write(u, np.full(u.size, passed))

    return try_wait
