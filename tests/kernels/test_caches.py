"""What is kept between calls: bounded in bytes, free of the first caller's modes, and reused."""

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mvar_kernels
from mvar_kernels import Pyramid, caches, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.backends import sdpa
from mvar_kernels.backends.tiled import layout, workspace
from mvar_kernels.backends.triton import schedule

from kernel_cases import CPU_BACKENDS, assert_close

KEPT = {"sdpa": sdpa._mask, "tiled": layout.layout_of, "triton": schedule.tables}


def attend(side, backend="auto", **options):
    x = torch.randn(1, side, side, 2, 8, generator=torch.Generator().manual_seed(side))
    return spatial_markov_attn(x, x, x, 5, backend=backend, **options)


def of_tensors():
    """Bytes of all tensors of this process."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_many_grids_hold_a_bounded_amount_and_clear_caches_frees_it(monkeypatch):
    mvar_kernels.clear_caches()
    monkeypatch.setattr(sdpa._mask.kept, "most_bytes", 1 << 20)
    monkeypatch.setattr(layout.layout_of.kept, "most_bytes", 1 << 20)
    monkeypatch.setattr(workspace, "_LEAST_BYTES", 1 << 10)
    before = of_tensors()
    for side in range(9, 49):
        for backend in ("sdpa", "tiled"):
            attend(side, backend)
    for name in ("sdpa", "tiled"):
        assert 0 < KEPT[name].kept.held <= 1 << 20, name
    assert workspace._unused.pieces and workspace._of_threads and any(workspace._of_threads)
    mvar_kernels.clear_caches()
    assert of_tensors() <= before
    assert not any(workspace._of_threads) and not any(kept.kept.results for kept in KEPT.values())
    assert layout.query_tiles and not mvar_kernels.neighborhood._decode.cache_info().currsize


def test_a_layout_holds_equal_masks_once():
    """9 kinds of tiles: a corner, an edge or the inside; hundreds of tiles share them."""
    mvar_kernels.clear_caches()
    block = mvar_kernels.Neighborhood.of_grids((128, 128), (128, 128), (7, 7)).blocks[0]
    masks = [strip.masks for strip in layout.layout_of((block,), torch.float32, torch.device("cpu")).strips]
    assert all(len(mask) <= 9 for mask in masks)
    assert layout.layout_of.kept.held < 2 << 20


def test_what_is_too_large_to_keep_is_right_all_the_same(monkeypatch):
    monkeypatch.setattr(sdpa._mask.kept, "most_bytes", 100)
    assert torch.equal(attend(12, "sdpa"), attend(12, "sdpa"))
    assert not sdpa._mask.kept.held


def test_the_latest_used_stay():
    made = []

    @caches.tables(83_000)
    def numbers(count):
        made.append(count)
        return torch.zeros(1_000 * count), (torch.ones(1_000 * count),)

    for count in (4, 5, 4, 2, 4, 2, 5, 30):
        numbers(count)
    assert made == [4, 5, 2, 5, 30]
    assert 0 < numbers.kept.held - 8_000 * (2 + 5) < 4_000
    mvar_kernels.clear_caches()
    assert not numbers.kept.held


_GROWTH = """
import ctypes, gc, os
import torch
from mvar_kernels import Neighborhood
from mvar_kernels.backends.tiled.layout import layout_of
def resident():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
layout_of.kept.most_bytes = 1 << 40
for side in range(97, 161, 3):
    blocks = Neighborhood.of_grids((side, side), (side, side), (7, 7)).blocks
    layout_of(blocks, torch.float32, torch.device("cpu"))
    if side == 97:
        before, held = resident(), layout_of.kept.held
print(resident() - before, layout_of.kept.held - held)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="measures the process by Linux's /proc and glibc"
)
def test_limits_count_what_the_process_grows_by():
    """Python's objects included: a layout has some for each tile."""
    done = subprocess.run([sys.executable, "-c", _GROWTH], capture_output=True, text=True, check=True)
    grown, counted = map(int, done.stdout.split())
    assert 1 << 20 < grown <= 1.1 * counted + (1 << 20)


def modes():
    yield "inference mode", torch.inference_mode()
    yield "default device", torch.device("meta")
    yield "fake tensors", FakeTensorMode()
    yield "no gradients", torch.no_grad()


@pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS])
@pytest.mark.parametrize("name", [name for name, _ in modes()] + ["torch.func", "default type"])
def test_nothing_of_the_first_caller_sticks_to_what_is_kept(name, backend):
    """Neither inference mode nor a transform, fake tensors, default device or type; large and small grids."""

    def gradients():
        results = []
        for side in (6, 21):
            x = torch.randn(
                1, side, side, 2, 8, requires_grad=True, generator=torch.Generator().manual_seed(1)
            )
            out = spatial_markov_attn(x, x, x, 3, backend=backend)
            results += [out.detach(), torch.autograd.grad(out.sin().sum(), x)[0]]
        return results

    expected = gradients()
    x = [torch.randn(1, side, side, 2, 8) for side in (6, 21)]
    mvar_kernels.clear_caches()
    if name == "torch.func":
        for each in x:
            torch.func.jvp(lambda t: spatial_markov_attn(t, t, t, 3, backend=backend), (each,), (each,))
            torch.func.hessian(lambda t: spatial_markov_attn(t, t, t, 3, backend=backend).sum(), 0)(
                each[:, :3, :2]
            )
    elif name == "default type":
        torch.set_default_dtype(torch.float64)
        try:
            inside = [spatial_markov_attn(each, each, each, 3, backend=backend) for each in x]
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        mode = dict(modes())[name]
        fake = name == "fake tensors"
        with mode:
            inside = [
                spatial_markov_attn(t, t, t, 3, backend=backend)
                for t in ([mode.from_tensor(each) for each in x] if fake else x)
            ]
        assert all(out.device.type == "cpu" for out in inside)
    assert all(map(torch.equal, gradients(), expected))


def test_a_pyramid_under_a_default_device():
    pyramid = Pyramid((1, 2, 9), 3)
    x = torch.randn(1, pyramid.length, 2, 8)
    mvar_kernels.clear_caches()
    with torch.device("meta"):
        found = pyramid_markov_attn(x, x, x, pyramid)
    assert_close(found, pyramid_markov_attn(x, x, x, pyramid, backend="reference"), 1e-5, "out")


def test_clearing_while_others_compute():
    expected, failures = attend(40, "tiled"), []
    done = threading.Event()

    def compute():
        try:
            for _ in range(20):
                assert torch.equal(attend(40, "tiled"), expected)
        except BaseException as failure:
            failures.append(failure)
        done.set()

    thread = threading.Thread(target=compute)
    thread.start()
    while not done.is_set():
        mvar_kernels.clear_caches()
    thread.join()
    assert not failures


def attention_and_gradients(inputs, backend):
    out = spatial_markov_attn(*inputs, 5, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))]


def test_memory_of_results_is_reused_when_nobody_holds_it(monkeypatch):
    """Views, graphs, NumPy arrays and other threads hold a result; freed memory is reused, up to a limit."""
    monkeypatch.setattr(workspace, "_LEAST_BYTES", 1)
    monkeypatch.setattr(workspace, "_unused", workspace._Unused())
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
    assert {piece.data_ptr() for piece in workspace._unused.pieces.values()} == places | {place}

    for piece in workspace._unused.pieces.values():
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
    assert workspace._unused.pieces and {len(piece) for piece in workspace._unused.pieces.values()} == {size}
    monkeypatch.setattr(workspace, "_KEPT_BYTES", 2 * size)
    attention_and_gradients(inputs, "tiled")
    assert len(workspace._unused.pieces) == 2
