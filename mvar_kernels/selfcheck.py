"""`python -m mvar_kernels`: which backend runs here and why, and is it right?"""

from __future__ import annotations

import importlib.util
import platform
import time
from collections.abc import Iterator

import torch

from mvar_kernels import __version__, backends
from mvar_kernels.backends import reference
from mvar_kernels.pyramid import Neighborhood, Pyramid

_PYRAMID = Pyramid((1, 2, 3, 4, 6, 8, 16), kernel_size=5, dense_scales=4)
_ALLOWED = 1e-4
_REPEATS = 5


def main() -> int:
    """Print the report; 0 if every backend that runs here agrees with float64, else 1."""
    for line in _versions():
        print(line)
    torch.set_float32_matmul_precision(
        "highest"
    )  # some images turn TF32 on, which is not what is to be checked
    right = True
    for device in _devices():
        right &= _check(device)
    print("all right" if right else "WRONG: at least one backend fails or disagrees with float64")
    return 0 if right else 1


def _versions() -> Iterator[str]:
    yield f"mvar {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {_triton_version()}"
    yield f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index}: {torch.cuda.get_device_name(index)}, capability {torch.cuda.get_device_capability(index)}"


def _triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return "no triton"
    import triton

    return f"triton {triton.__version__}"


def _devices() -> list[str]:
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def _check(device: str) -> bool:
    neighborhood = _PYRAMID.neighborhood()
    generator = torch.Generator().manual_seed(0)
    shape = (2, neighborhood.num_queries, 4, 32)
    q, k, v, grad = (torch.randn(shape, generator=generator).to(device) for _ in range(4))
    factor = torch.tensor([1.0, 4.0, 10.0, 50.0], device=device)
    chosen, why = backends.automatic(q, k, v, factor, neighborhood)
    print(f"{device}: auto takes {chosen!r} for {_PYRAMID}: {why}")
    truth = _run(reference, [t.double().cpu() for t in (q, k, v, grad, factor)], neighborhood)
    right = True
    for name in backends.NAMES:
        backend = backends.load(name)
        reason = backend.can_run(q, k, v, factor, neighborhood)
        if reason is not None:
            print(f"  {name:10} not here: {reason}")
            continue
        try:
            results = _run(backend, [q, k, v, grad, factor], neighborhood)
        except Exception as failure:  # the others are still worth knowing
            print(
                f"  {name:10} failed: {type(failure).__name__}: {str(failure).splitlines()[0][:200] if str(failure) else ''}"
            )
            right = False
            continue
        error = max(_relative_error(result, true) for result, true in zip(results, truth))
        seconds = _time(lambda backend=backend: _run(backend, [q, k, v, grad, factor], neighborhood), device)
        print(f"  {name:10} largest relative error {error:.1e}, forward + backward {seconds * 1e3:.2f} ms")
        right &= error < _ALLOWED
    return right


def _run(backend, inputs: list[torch.Tensor], neighborhood: Neighborhood) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    q, k, v, grad, factor = inputs
    out, lse = backend.forward(q, k, v, factor, neighborhood, 1.0)
    return [out, lse, *backend.backward(grad, None, q, k, v, out, lse, factor, neighborhood, 1.0)]


def _relative_error(result: torch.Tensor, true: torch.Tensor) -> float:
    return float((result.cpu().double() - true).abs().max() / true.abs().max())


def _time(call, device: str) -> float:  # type: ignore[no-untyped-def]
    """Median of a few calls, in seconds; every result has been computed once before."""
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return sorted(times)[_REPEATS // 2]
