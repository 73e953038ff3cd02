"""The kernel of `sample_codes` as machine code, on sm_80 and sm_90, held to float64; broken code is noticed.

`make test-emulated` runs all of tests/triton/test_kernel_sample.py this way.
"""

import re

import pytest
import torch

from chosen_cases import EVERYTHING, pairwise
from code_cases import NEARLY_ONE, disagreements, draw_case, reference
from machine_code_support import CAPABILITIES, MACHINE_CODE

pytestmark = MACHINE_CODE


@pytest.fixture(params=CAPABILITIES)
def gpu(request):
    from emulated_gpu import mvar_backend

    with mvar_backend.emulated(request.param, unit_warps=0) as emulated:
        yield emulated


def drawn(logits, uniform, unconditional=None, guidance=0.0, top_k=0, top_p=0.0):
    from mvar_kernels.backends.triton.kernel_sample import draw_codes

    other = None if unconditional is None else unconditional[None]
    return draw_codes(logits[None], other, uniform, guidance, top_k, top_p)


def row_of(vocabulary, dtype, seed, rows=2):
    generator = torch.Generator().manual_seed(seed)
    logits, unconditional = (torch.randn(2, rows, vocabulary, generator=generator) * 2).to(dtype)
    uniform = torch.tensor([[0.0, 0.31, NEARLY_ONE]]).expand(rows, 3).contiguous()
    return logits, uniform, unconditional, 1.5, vocabulary // 5, 0.96


@pytest.mark.parametrize(
    "gpu, vocabulary, dtype",
    pairwise(CAPABILITIES, [4096, 1003], [torch.float32, torch.float16, torch.bfloat16]),
    indirect=["gpu"],
    ids=str,
)
def test_held_rows(gpu, vocabulary, dtype, seed):
    case = row_of(vocabulary, dtype, seed)
    expected = reference(*case)
    codes = drawn(*case)
    assert torch.equal(codes[expected.is_clear], expected.codes[expected.is_clear])
    assert gpu.launches[-1].undefined_reads == 0
    assert not gpu.launches[-1].unfenced_reads


def test_ties_extremes_and_impossible_codes(gpu, seed):
    cases = (draw_case(seed + i, 8, 70) for i in range(4))
    unclear, total = disagreements(lambda case: drawn(*case), cases)
    assert unclear <= total / 4


def test_the_largest_vocabulary(seed):
    """Read again in every step; one architecture, as a row takes seconds."""
    from emulated_gpu import mvar_backend

    case = row_of(65_536, torch.bfloat16, seed, rows=1)
    expected = reference(*case)
    with mvar_backend.emulated(90, unit_warps=0):
        codes = drawn(*case)
    assert torch.equal(codes[expected.is_clear], expected.codes[expected.is_clear])


@pytest.mark.parametrize("capability", [80, 90])
def test_warps_do_not_race(capability):
    """The same codes with warps one by one, in an order drawn from a seed, as in lockstep."""
    from emulated_gpu import mvar_backend

    case = row_of(2100, torch.float32, 0, rows=1)
    with mvar_backend.emulated(capability, unit_warps=0):
        expected = drawn(*case)
    with mvar_backend.emulated(capability, unit_warps=1, seed=1):
        assert torch.equal(drawn(*case), expected)


@pytest.mark.parametrize(
    "what, pattern, replacement",
    [
        ("a barrier removed", r"bar\.sync\s+0;", ""),
        (
            "a step of a reduction removed",
            r"shfl\.sync\.bfly\.b32\s+(%r\d+), (%r\d+),[^;]*;",
            r"mov.b32 \1, \2;",
        ),
        (
            "a step of a prefix sum removed",
            r"shfl\.sync\.up\.b32\s+(%r\d+), (%r\d+),[^;]*;",
            r"mov.b32 \1, \2;",
        ),
    ],
    ids=["barrier", "reduction", "prefix-sum"],
)
def test_broken_kernels_are_caught(what, pattern, replacement):
    """One instruction at a time: a fault, or other codes. Half of them, as some barriers are redundant."""
    from emulated_gpu import mvar_backend
    from emulated_gpu.faults import Fault
    from emulated_gpu.program import Code

    generator = torch.Generator().manual_seed(1)
    # A flat distribution of ties and two warps, so that most sums show in some code.
    logits = (torch.randn(1, 2048, generator=generator) * 4).round() / 4
    uniform = torch.linspace(0, NEARLY_ONE, 100)[None]
    case = logits, uniform, None, 0.0, 1200, 0.9
    with mvar_backend.emulated(90, unit_warps=1) as gpu:
        expected = drawn(*case)
        launcher = gpu.launchers[-1]
        whole, text = launcher.code, launcher.text
        places = list(re.finditer(pattern, text))
        assert places, f"no instruction matches: {what}"
        noticed = 0
        tried = places[:: max(1, len(places) // (8 if EVERYTHING else 4))]
        for place in tried:
            launcher.code = Code(text[: place.start()] + place.expand(replacement) + text[place.end() :])
            try:
                noticed += not torch.equal(drawn(*case), expected)
            except Fault:
                noticed += 1
            finally:
                launcher.code = whole
    assert noticed >= len(tried) / 2, f"{what}: {noticed} of {len(tried)} mutants were noticed"
