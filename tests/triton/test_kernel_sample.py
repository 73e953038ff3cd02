"""The kernel of `sample_codes` against float64: rows held in registers, rows read again, edges, strides."""

import pytest
import torch

from mvar_kernels import sample_codes
from mvar_kernels.backends.triton import kernel_sample
from mvar_kernels.sampling import in_three_dimensions

from chosen_cases import EVERYTHING, some
from code_cases import EDGES, NEARLY_ONE, disagreements, draw_case, reference
from triton_support import DEVICE, HALF, INTERPRETED

KINDS = [torch.float32, *HALF]
# The interpreter takes 0.1 s for a row, 0.3 s where it is read again.
CASES, ROWS = (6, 8 if EVERYTHING else 4) if INTERPRETED else (40, 16)


def drawn(logits, uniform, unconditional=None, guidance=0.0, top_k=0, top_p=0.0):
    """Codes by the kernel, whatever the device."""
    logits, uniform = logits.to(DEVICE), uniform.to(DEVICE)
    if unconditional is not None:
        unconditional = in_three_dimensions(unconditional.to(DEVICE))
    logits = in_three_dimensions(logits)
    rows = logits.shape[0] * logits.shape[1]
    codes = kernel_sample.draw_codes(logits, unconditional, uniform.reshape(rows, -1), guidance, top_k, top_p)
    return codes.view(uniform.shape).cpu()


@pytest.fixture
def read_again(monkeypatch):
    """Rows of more than 32 logits are read chunk by chunk, as only rows beyond 8,192 are otherwise."""
    monkeypatch.setattr(kernel_sample, "LARGEST_HELD", 32)
    monkeypatch.setattr(kernel_sample, "_CHUNK", 32)


@pytest.mark.parametrize("dtype", KINDS)
def test_rows_held_in_registers(seed, dtype):
    cases = (draw_case(seed + i, ROWS, (1, 2, 7, 33, 100, 512)[i % 6], dtype) for i in range(CASES))
    unclear, total = disagreements(lambda case: drawn(*case), cases)
    assert unclear <= total / 10


@pytest.mark.parametrize("dtype", KINDS)
def test_rows_read_again(seed, dtype, read_again):
    cases = (draw_case(seed + i, ROWS, (33, 64, 100)[i % 3], dtype) for i in range(CASES // 2))
    unclear, total = disagreements(lambda case: drawn(*case), cases)
    assert unclear <= total / 10


@pytest.mark.parametrize("vocabulary", some([4096, 4095], 1))
def test_the_released_vocabulary(seed, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    logits, unconditional = torch.randn(2, 6, vocabulary, generator=generator)
    uniform = torch.rand(6, 1, generator=generator)
    uniform[0], uniform[1] = 0, NEARLY_ONE
    settings = {"unconditional": unconditional, "guidance": 1.5, "top_k": 900, "top_p": 0.96}
    expected = reference(logits, uniform, **settings)
    codes = drawn(logits, uniform, **settings)
    # The interpreter sums one after the other in float32, which is ten times less exact than a tree.
    clear = expected.is_clear if DEVICE == "cuda" else _clear_at(expected, uniform, 1e-5)
    assert torch.equal(codes[clear], expected.codes[clear])
    assert clear.sum() >= 2


def _clear_at(expected, uniform, distance):
    sums = expected.probabilities.cumsum(-1)
    near = ((sums[:, None] - uniform[:, :, None]).abs() <= distance) & (uniform[:, :, None] > 0)
    return expected.is_clear & ~near.any(-1)


@pytest.mark.parametrize("logits, uniform, settings, code", EDGES)
def test_edges(logits, uniform, settings, code):
    assert drawn(torch.tensor(logits), torch.tensor(uniform), **settings).item() == code


def test_edges_of_rows_read_again(read_again):
    for logits, uniform, settings, code in EDGES:
        # What is appended is never drawn, and moves the row's end into a second chunk.
        row = torch.tensor([*logits, *(40 - len(logits)) * [-torch.inf]])
        assert drawn(row, torch.tensor(uniform), **settings).item() == code, (logits, uniform, settings)


def test_candidates_and_strides(seed):
    logits = torch.randn(40, 3, 5, device=DEVICE).permute(2, 1, 0)
    other = torch.randn(5, 3, 80, device=DEVICE)[..., ::2]
    uniform = torch.rand(5, 3, 4)
    assert not logits.is_contiguous() and not other.is_contiguous()
    settings = {"guidance": 0.7, "top_k": 20, "top_p": 0.9}
    codes = drawn(logits, uniform, other, **settings)
    assert torch.equal(codes, sample_codes(logits.cpu(), uniform, unconditional=other.cpu(), **settings))
    for i in range(4):
        alone = drawn(logits.contiguous(), uniform[..., i], other.contiguous(), **settings)
        assert torch.equal(codes[..., i], alone)


def test_ties_are_cut_across_chunks(read_again):
    """Of 100 equal logits, top_p keeps the first; they lie in four chunks."""
    for top_p, kept in ((0.5, 50), (0.305, 31), (0.9, 90)):
        codes = drawn(torch.ones(3, 100), torch.tensor([0.0, 0.5, NEARLY_ONE]), top_p=top_p)
        assert codes.tolist() == [0, kept // 2, kept - 1]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_the_operator_in_a_cuda_graph():
    logits, uniform = torch.randn(8, 300, device=DEVICE), torch.rand(8, device=DEVICE)
    expected = sample_codes(logits, uniform, top_k=50, top_p=0.9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = sample_codes(logits, uniform, top_k=50, top_p=0.9)
    graph.replay()
    assert torch.equal(codes, expected)
    uniform.fill_(0.0)
    graph.replay()
    assert torch.equal(codes, sample_codes(logits, uniform, top_k=50, top_p=0.9))
