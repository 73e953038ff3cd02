"""`sample_codes` on a CPU: codes of a float64 sort, ties, extremes, rows of nothing, operator, errors."""

import pytest
import torch

from mvar_kernels import sample_codes, sampling
from mvar_kernels.backends import codes as in_pytorch

from code_cases import EDGES, INF, NAN, disagreements, draw_case, reference


def drawn(case):
    return sample_codes(
        case.logits,
        case.uniform,
        unconditional=case.unconditional,
        guidance=case.guidance,
        top_k=case.top_k,
        top_p=case.top_p,
    )


def test_ten_thousand_rows_against_a_sort_in_float64(seed):
    """Equal wherever rounding cannot decide; it may decide for .2 % of them at most."""
    cases = (draw_case(seed + i, 100, (1, 2, 7, 33, 100, 200, 300)[i % 7]) for i in range(100))
    unclear, total = disagreements(drawn, cases)
    assert total == 10_000 and unclear <= 20, f"float32 may decide {unclear} of {total}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_drawn_in_float32(seed, dtype):
    cases = (draw_case(seed + i, 50, (5, 300)[i % 2], dtype) for i in range(16))
    unclear, total = disagreements(drawn, cases)
    assert unclear <= total / 50


@pytest.mark.parametrize("vocabulary, top_k", [(4096, 900), (4095, 0), (65_536, 900)])
def test_large_vocabularies(seed, vocabulary, top_k):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(70, vocabulary, generator=generator) * 2
    uniform = torch.rand(70, 1, generator=generator)
    expected = reference(logits, uniform, top_k=top_k, top_p=0.96)
    codes = sample_codes(logits, uniform, top_k=top_k, top_p=0.96)
    assert torch.equal(codes[expected.is_clear], expected.codes[expected.is_clear])
    assert expected.is_clear.float().mean() > 0.9


def test_a_million_draws_follow_the_filtered_distribution():
    """Chi-square with a fixed seed, below the mean of its distribution plus four deviations."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 200, generator=generator)
    uniform = torch.rand(1, 1_000_000, generator=generator)
    codes = sample_codes(logits, uniform, top_k=120, top_p=0.9)
    probabilities = reference(logits, uniform[:, :1], top_k=120, top_p=0.9).probabilities[0]
    counts, expected = torch.bincount(codes[0], minlength=200).double(), probabilities * 1e6
    possible = expected > 0
    assert not counts[~possible].any() and 40 < possible.sum() < 120
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = int(possible.sum()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_candidates_are_the_codes_of_each_number_alone(seed):
    case = draw_case(seed, 20, 50)
    uniform = torch.rand(20, 5)
    together = drawn(case._replace(uniform=uniform))
    for i in range(5):
        alone = drawn(case._replace(uniform=uniform[:, i]))
        assert alone.shape == (20,) and torch.equal(together[:, i], alone)


def test_any_strides_and_leading_dimensions(seed):
    plain = torch.randn(2, 3, 4, 30)
    uniform = torch.rand(2, 3, 4)
    expected = sample_codes(plain.reshape(-1, 30), uniform.reshape(-1), top_k=9, top_p=0.8).view(2, 3, 4)
    strided = torch.empty(30, 4, 3, 2).permute(3, 2, 1, 0).copy_(plain)
    spaced = torch.zeros(2, 3, 8, 61)[:, :, ::2, 1::2].copy_(plain)
    assert not strided.is_contiguous() and not spaced.is_contiguous()
    for logits in (plain, strided, spaced):
        assert torch.equal(sample_codes(logits, uniform, top_k=9, top_p=0.8), expected)
        guided = sample_codes(plain, uniform, unconditional=logits, guidance=1.5, top_k=9, top_p=0.8)
        # (1 + w) x - w x is x up to rounding.
        assert (guided == expected).float().mean() > 0.8
    assert sample_codes(plain[0, 0, 0], uniform[0, 0, 0], top_k=9, top_p=0.8) == expected[0, 0, 0]
    assert torch.equal(sample_codes(plain[0, 0, 0].expand(5, 30), torch.zeros(5)), torch.zeros(5).long())


def test_rows_are_cut_into_parts_without_a_trace(seed, monkeypatch):
    logits, uniform = torch.randn(3, 7, 40), torch.rand(3, 7)
    whole = sample_codes(logits, uniform, top_k=5, top_p=0.7)
    for at_a_time in (1, 80, 200, 600):
        monkeypatch.setattr(in_pytorch, "_CACHED", at_a_time)
        assert torch.equal(sample_codes(logits, uniform, top_k=5, top_p=0.7), whole)


@pytest.fixture
def elsewhere(monkeypatch):
    """As on a GPU without our kernel, where nothing may ask the device; here on a CPU."""
    monkeypatch.setattr(in_pytorch, "_is_cpu", lambda tensor: False)


@pytest.mark.parametrize("logits, uniform, settings, code", EDGES)
def test_edges(logits, uniform, settings, code):
    assert sample_codes(torch.tensor(logits), torch.tensor(uniform), **settings).item() == code


@pytest.mark.parametrize("logits, uniform, settings, code", EDGES)
def test_edges_on_other_devices(logits, uniform, settings, code, elsewhere):
    assert sample_codes(torch.tensor(logits), torch.tensor(uniform), **settings).item() == code


def test_guidance_is_the_mixture_of_the_sampler():
    """Bit for bit (1 + w) c - w u, in float32, so filters see the same ties."""
    logits, unconditional, uniform = torch.randn(40, 64), torch.randn(40, 64), torch.rand(40)
    mixed = (1 + 1.7) * logits - 1.7 * unconditional
    expected = sample_codes(mixed, uniform, top_k=20, top_p=0.9)
    guided = sample_codes(logits, uniform, unconditional=unconditional, guidance=1.7, top_k=20, top_p=0.9)
    assert torch.equal(guided, expected)
    ignored = torch.full_like(logits, NAN)
    assert torch.equal(sample_codes(mixed, uniform, unconditional=ignored), sample_codes(mixed, uniform))
    hidden = logits.clone()
    hidden[:, 5] = -INF
    both = unconditional.clone()
    both[:, 5] = -INF
    assert not (sample_codes(hidden, uniform, unconditional=both, guidance=1.0) == 5).any()


def test_the_codes_are_those_of_the_filters_and_the_draw():
    from mvar_models.sampling.samplers import draw, filter_logits

    logits, uniform = torch.randn(256, 500), torch.rand(256)
    old = draw(filter_logits(logits, 90, 0.96), uniform)
    assert (sample_codes(logits, uniform, top_k=90, top_p=0.96) != old).sum() <= 1


def test_sums_of_a_device_never_fall_and_never_rise_at_impossible_codes():
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.5, 0.5, 0.0]])
    rounded = torch.tensor([[0.1, 1.0, 1.2, 1.5, 1.4, 2.0]])
    assert in_pytorch.monotone(rounded, weights).tolist() == [[0.0, 1.0, 1.0, 1.5, 1.5, 1.5]]


def test_other_devices_draw_no_impossible_code(monkeypatch, elsewhere):
    """Though their sums may rise where a weight is zero."""
    cumsum = torch.Tensor.cumsum

    def rising(tensor, dim):
        return cumsum(tensor, dim) + 1e-3 * torch.arange(tensor.shape[dim])

    monkeypatch.setattr(torch.Tensor, "cumsum", rising)
    logits = torch.zeros(1, 60)
    logits[:, ::2] = -INF
    codes = sample_codes(logits, torch.linspace(0, 0.999, 500)[None])
    assert (codes % 2 == 1).all() and len(codes.unique()) == 30


def test_the_path_of_other_devices_draws_the_same(monkeypatch):
    cases = [draw_case(i, 16, 30) for i in range(30)]
    expected = [drawn(case) for case in cases]
    monkeypatch.setattr(in_pytorch, "_is_cpu", lambda tensor: False)
    monkeypatch.setattr(torch.Tensor, "__bool__", None)
    assert all(torch.equal(drawn(case), codes) for case, codes in zip(cases, expected))


def test_opcheck(seed):
    logits, unconditional, uniform = torch.randn(2, 3, 20), torch.randn(2, 3, 20), torch.rand(2, 3)
    torch.library.opcheck(sampling.sample_codes_op, (logits, unconditional, uniform, 1.5, 5, 0.9))
    torch.library.opcheck(
        sampling.sample_codes_op, (logits.bfloat16(), None, torch.rand(2, 3, 4), 0.0, 0, 0.0)
    )


def test_compiles_whole():
    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(logits, uniform, unconditional):
        return sample_codes(
            logits * 2, uniform, unconditional=unconditional, guidance=1.5, top_k=5, top_p=0.9
        )

    logits, unconditional, uniform = torch.randn(2, 3, 20), torch.randn(2, 3, 20), torch.rand(2, 3)
    expected = sample_codes(
        logits * 2, uniform, unconditional=unconditional, guidance=1.5, top_k=5, top_p=0.9
    )
    assert torch.equal(run(logits, uniform, unconditional), expected)


def test_gradients_float64_numbers_and_empty_batches():
    logits = torch.randn(4, 9, requires_grad=True)
    assert not sample_codes(logits, torch.rand(4, dtype=torch.float64)).requires_grad
    assert sample_codes(torch.randn(0, 9), torch.rand(0)).shape == (0,)
    assert sample_codes(torch.randn(2, 9), torch.rand(2, 0)).shape == (2, 0)


ROWS, NUMBERS = torch.zeros(2, 5), torch.zeros(2)


@pytest.mark.parametrize(
    "error, match, logits, uniform, settings",
    [
        (TypeError, "logits .*list", [1.0], NUMBERS, {}),
        (TypeError, "logits .*float64", ROWS.double(), NUMBERS, {}),
        (ValueError, r"logits .*\(2, 0\)", torch.zeros(2, 0), NUMBERS, {}),
        (ValueError, r"logits .*65,536.*\(65537,\)", torch.zeros(65_537), torch.zeros(()), {}),
        (ValueError, r"uniform .*\(2,\).*\(3,\)", ROWS, torch.zeros(3), {}),
        (ValueError, r"uniform .*\(2, 1, 1\)", ROWS, torch.zeros(2, 1, 1), {}),
        (TypeError, "uniform .*float16", ROWS, NUMBERS.half(), {}),
        (ValueError, "uniform is on meta", ROWS, NUMBERS.to("meta"), {}),
        (ValueError, "guidance 1.5 .*unconditional.*None", ROWS, NUMBERS, {"guidance": 1.5}),
        (ValueError, "guidance .*inf", ROWS, NUMBERS, {"guidance": INF, "unconditional": ROWS}),
        (TypeError, "guidance .*Tensor", ROWS, NUMBERS, {"guidance": NUMBERS}),
        (ValueError, r"unconditional .*\(2, 5\).*\(5,\)", ROWS, NUMBERS, {"unconditional": ROWS[0]}),
        (TypeError, "unconditional .*float32.*float16", ROWS, NUMBERS, {"unconditional": ROWS.half()}),
        (ValueError, "top_k .*-1", ROWS, NUMBERS, {"top_k": -1}),
        (TypeError, "top_k .*float", ROWS, NUMBERS, {"top_k": 1.0}),
        (ValueError, "top_p .*1.5", ROWS, NUMBERS, {"top_p": 1.5}),
        (TypeError, "top_p .*bool", ROWS, NUMBERS, {"top_p": True}),
    ],
)
def test_bad_arguments_are_named(error, match, logits, uniform, settings):
    with pytest.raises(error, match=match):
        sample_codes(logits, uniform, **settings)
