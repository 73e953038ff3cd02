"""Memory of large results on a CPU is used again only when nobody holds the result."""

from concurrent.futures import ThreadPoolExecutor

import torch

from mvar_kernels import spatial_markov_attn
from mvar_kernels.backends.tiled import memory


def attention_and_gradients(inputs, backend):
    out = spatial_markov_attn(*inputs, 5, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))]


def test_memory_of_results_is_reused_when_nobody_holds_it(monkeypatch):
    """Views, graphs, NumPy arrays and other threads hold a result; freed memory is reused, up to a limit."""
    monkeypatch.setattr(memory, "_LEAST_BYTES", 1)
    monkeypatch.setattr(memory, "_unused", memory._Unused())
    inputs = [torch.randn(1, 18, 18, 2, 8, requires_grad=True) for _ in range(3)]
    expected = attention_and_gradients(inputs, "reference")
    first = spatial_markov_attn(*inputs, 5, backend="tiled")  # its graph saves it
    place, seen = first.data_ptr(), first.detach().numpy()[:, 3:]
    before = seen.copy()
    del first
    actual = attention_and_gradients(inputs, "tiled")
    assert place not in {tensor.data_ptr() for tensor in actual} and (seen == before).all()
    places = {tensor.data_ptr() for tensor in actual}
    del seen, actual
    assert {piece.data_ptr() for piece in memory._unused.pieces.values()} == places | {place}

    for piece in memory._unused.pieces.values():
        piece.view(torch.float32).fill_(float("nan"))
    with torch.inference_mode():
        again = spatial_markov_attn(*inputs, 5, backend="tiled")
    assert again.data_ptr() in places | {place}
    torch.testing.assert_close(again, expected[0])
    del again
    with ThreadPoolExecutor(2) as pool:
        for actual in pool.map(lambda _: attention_and_gradients(inputs, "tiled"), range(40)):
            torch.testing.assert_close(actual, expected)
    del actual
    size = inputs[0].nbytes
    assert memory._unused.pieces and {len(piece) for piece in memory._unused.pieces.values()} == {size}
    monkeypatch.setattr(memory, "_KEPT_BYTES", 2 * size)
    attention_and_gradients(inputs, "tiled")
    assert len(memory._unused.pieces) == 2
