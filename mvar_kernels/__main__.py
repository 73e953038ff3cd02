"""The report of `python -m mvar_kernels`: which backends run here, why, and whether they are right."""

from __future__ import annotations

import functools
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Iterator

import torch

from mvar_kernels import __version__, dispatch
from mvar_kernels.backends import AttentionCall, Backend
from mvar_kernels.pyramid import Pyramid

_PYRAMID = Pyramid((1, 2, 3, 4, 6, 8, 16), kernel_size=5, dense_scales=4)
_ALLOWED = 1e-4
_REPEATS = 5


def main() -> int:
    """Print the report; return 0 if every backend that runs here agrees with float64, else 1."""
    for line in _versions():
        print(line)
    # Some containers turn TF32 on, whose errors are larger than what is allowed here.
    torch.set_float32_matmul_precision("highest")
    all_right = True
    for device in _devices():
        all_right &= _check(device)
    print("all right" if all_right else "WRONG: at least one backend fails or disagrees with float64")
    return 0 if all_right else 1


def _versions() -> Iterator[str]:
    python = f"Python {platform.python_version()}"
    yield f"mvar-kernels {__version__}, {python}, torch {torch.__version__}, {_triton_version()}"
    yield f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        yield f"cuda:{index}: {name}, capability {capability}"


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
    call = AttentionCall(q, k, v, factor, neighborhood, 1.0)
    chosen, why = dispatch.automatic(call)
    print(f"{device}: auto takes {chosen!r} for {_PYRAMID}: {why}")
    q, k, v, factor, true_grad = (tensor.double().cpu() for tensor in (q, k, v, factor, grad))
    precise = AttentionCall(q, k, v, factor, neighborhood, 1.0)
    truth = _run(dispatch.load("reference"), precise, true_grad)
    all_right = True
    for name in dispatch.BACKENDS:
        backend = dispatch.load(name)
        reason = backend.can_run(call)
        if reason is not None:
            print(f"  {name:10} not here: {reason}")
            continue
        try:
            results = _run(backend, call, grad)
        except Exception as failure:  # one broken backend must not end the report
            first_line = str(failure).partition("\n")[0][:200]
            print(f"  {name:10} failed: {type(failure).__name__}: {first_line}")
            all_right = False
            continue
        error = max(_relative_error(result, true) for result, true in zip(results, truth))
        seconds = _time(functools.partial(_run, backend, call, grad), device)
        print(f"  {name:10} largest relative error {error:.1e}, forward + backward {seconds * 1e3:.2f} ms")
        all_right &= error < _ALLOWED
    return all_right


def _run(backend: Backend, call: AttentionCall, grad: torch.Tensor) -> list[torch.Tensor]:
    out, lse = backend.forward(call)
    gradients = backend.backward(call, out, lse, grad, None)
    return [out, lse, *(gradient for gradient in gradients if gradient is not None)]


def _relative_error(result: torch.Tensor, true: torch.Tensor) -> float:
    return float((result.cpu().double() - true).abs().max() / true.abs().max())


def _time(call: Callable[[], object], device: str) -> float:
    """Return the median time of a few calls in seconds; the caller has warmed up."""
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[_REPEATS // 2]


if __name__ == "__main__":
    sys.exit(main())
