"""Look up devices by name, recognise memory that ran out, and size batches."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# How PyTorch, its libraries and the system say that there is no memory, where the type does not tell.
_NO_MEMORY = re.compile(
    "out of memory|(can't|cannot|unable to) allocate|not enough memory|_STATUS_ALLOC_FAILED|bad_alloc"
    "|could not create a memory object",
    re.IGNORECASE,
)


@contextlib.contextmanager
def usual_defaults() -> Iterator[None]:
    """Let torch create float32 tensors on the CPU, with gradients, whatever the program has set before."""
    dtype = torch.get_default_dtype()
    try:
        elsewhere = torch.get_default_device().type != "cpu"
    except AttributeError:  # PyTorch 2.6, once set_default_device(None) was called.
        elsewhere = False
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.device("cpu") if elsewhere else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Create networks on the device "meta" inside the block: shapes, whose values come from a file."""
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """Skips initialisers that PyTorch decomposes on "meta", importing its compiler, a second or more."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def checked_device(device: torch.device | str | int | None) -> torch.device:
    """Return a device by name or number; None is the CPU, and 1 or "1" the GPU of that number.

    Raises:
        ValueError: torch does not know the name, or this machine does not have the device.
    """
    if device is None:
        return torch.device("cpu")
    written = str(device)
    name = f"{_accelerator()}:{written}" if written.isdecimal() else written
    index = name.partition(":")[2]
    try:
        place = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from None
    missing = f"device {written!r} is not available: "
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place.type == "cuda" and not gpus:
        raise ValueError(f"{missing}torch {torch.__version__} finds no GPU on this machine; use 'cpu'")
    # The text's number, because torch keeps eight bits of it: its "cuda:256" is the first GPU.
    if place.type == "cuda" and int(index or 0) >= gpus:
        raise ValueError(f"{missing}this machine has cuda:0 to cuda:{gpus - 1}")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{missing}torch {torch.__version__} finds no Apple GPU on this machine; use 'cpu'")
    if place.type == "meta":
        raise ValueError(f"{missing}it holds no values to compute with; use 'cpu' or 'cuda'")
    if place.type not in ("cpu", "cuda"):
        _try(place, missing)
    return place


def _accelerator() -> str:
    # Without one, PyTorch 2.6 raises where later ones return None.
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cuda" if other is None else other.type


def _try(place: torch.device, missing: str) -> None:
    # Each of the rarer kinds has its own way to say that it is not there, and its own type of error.
    try:
        torch.zeros(1, dtype=torch.float32, device=place).add(1)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ValueError(f"{missing}{reason}; use 'cpu'") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU or of the machine is full."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return not isinstance(error, ValueError) and _NO_MEMORY.search(str(error)) is not None


def default_device() -> str:
    """Return "cuda" if torch sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fit_batch(budget: int, per_image: int, most: int | None = None) -> int:
    """Return how many images to process at a time: as many as the budget holds, but at least one.

    Args:
        budget: What the step may hold at once, in whatever unit grows with its memory (pixels, logits,
            tokens).
        per_image: The same of one image.
        most: Largest batch, whatever the budget.
    """
    fitting = max(1, budget // per_image)
    return fitting if most is None else min(fitting, most)
