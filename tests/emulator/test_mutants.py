"""A kernel broken on purpose, one instruction at a time, must be noticed: by a fault or by a wrong result."""

import re

import pytest
import torch

from mvar_kernels import Neighborhood
from mvar_kernels.backends import AttentionCall

from chosen_cases import once
from kernel_cases import draw_inputs, in_float64, largest_error
from machine_code_support import CAPABILITIES, MACHINE_CODE

pytestmark = MACHINE_CODE
WINDOWS = Neighborhood.of_grids((12, 12), (12, 12), (5, 5))
SCALE = 0.125
# A run of a kernel takes a second, so of many places of a kind these are broken, evenly spread.
MOST = 8


def forward():
    from mvar_kernels.dispatch import load

    inputs = draw_inputs(WINDOWS, batch=1, heads=1, dim=64, dtype=torch.float16)
    return inputs, load("triton").forward(AttentionCall(*inputs[:3], None, WINDOWS, SCALE))[0]


def another_swizzle(match):
    """Leave out the exclusive or of an address, or turn the 128-byte mode of a descriptor to 64, or back."""
    if match["target"]:
        return f"mov.b32 {match['target']}, {match['source']};"
    bits = (int(match["descriptor"]) ^ 3 << 62) % 2**64
    return str(bits - 2**64 if bits >= 2**63 else bits)


MUTATIONS = {
    "a barrier removed": (r"bar\.sync\s+0;", ""),
    "a wait for copies removed": (r"cp\.async\.wait_group\s+\d+;", ""),
    "a step of a reduction removed": (
        r"shfl\.sync\.bfly\.b32\s+(%r\d+), (%r\d+),[^;]*;",
        lambda match: f"mov.b32 {match[1]}, {match[2]};",
    ),
    "a store one row past the end": (
        r"(st\.global\.v4\.b32 \[ %rd\d+ \+ )0( \])",
        lambda match: f"{match[1]}128{match[2]}",
    ),
    "a load one row past the end": (
        r"((?:ld\.global\.v4\.b32 \{[^}]*\}|cp\.async\.cg\.shared\.global \[[^]]*\]), \[ %rd\d+ \+ )0( \])",
        lambda match: f"{match[1]}128{match[2]}",
    ),
    "a copy to shared memory removed": (r"cp\.async\.cg\.shared\.global[^;]*;", ""),
    "a store to shared memory removed": (r"st\.shared\.[^;]*;", ""),
    "another swizzle": (
        r"xor\.b32\s+(?P<target>%r\d+), (?P<source>%r\d+), (?:16|32|48|64|80|96|112);"
        r"|(?<=, )(?P<descriptor>-?\d{19})(?=;)",
        another_swizzle,
    ),
}


def mutants(text, pattern, replacement):
    """The PTX with each occurrence of a pattern in turn replaced, unless that leaves it as it was."""
    found = list(re.finditer(pattern, text))
    for match in found[:: -(-len(found) // MOST)]:
        new = replacement(match) if callable(replacement) else replacement
        yield text[: match.start()] + new + text[match.end() :]


@pytest.mark.parametrize("gpu, what", once(CAPABILITIES, list(MUTATIONS)), indirect=["gpu"], ids=str)
def test_broken_kernels_are_caught(gpu, what):
    """Half of the mutants must show, not all.

    Triton emits barriers and waits that others make redundant, such as the wait for copies after the last
    chunk.
    """
    from emulated_gpu.faults import Fault
    from emulated_gpu.program import Code

    gpu.unit_warps = 1
    inputs, out = forward()
    truth, _, _ = in_float64(inputs, WINDOWS, SCALE, use_lse=False)
    assert largest_error(out, truth) <= 2e-3
    launcher = gpu.launchers[-1]
    broken = list(mutants(launcher.text, *MUTATIONS[what]))
    assert broken, "no instruction matches"
    whole, noticed = launcher.code, 0
    for text in broken:
        launcher.code = Code(text)
        try:
            noticed += not largest_error(forward()[1], truth) <= 2e-3
        except Fault:
            noticed += 1
        finally:
            launcher.code = whole
    assert noticed >= len(broken) / 2, f"{noticed} of {len(broken)} mutants were noticed"
