"""Codes from logits in one operator: guidance, top-k, top-p and the draw.

`mvar_kernels::sample_codes` runs a Triton kernel on GPUs (backends/triton/kernel_sample.py), plain PyTorch
elsewhere (backends/codes.py). Nothing in it waits for a GPU, so it can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from mvar_kernels.per_axis import plain

MAX_VOCABULARY = 65_536
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LEAST_CAPABILITY = (8, 0)


def sample_codes(
    logits: Tensor,
    uniform: Tensor,
    *,
    unconditional: Tensor | None = None,
    guidance: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Tensor:
    """Draw codes from softmax((1 + guidance) logits - guidance unconditional) after top_k, then top_p.

    A uniform number u picks, in index order, the first code at which the cumulative probability exceeds u.
    Logits are mixed, compared and exponentiated in float32, whatever their type. Ties are exact: 0 and -0 are
    equal, and nothing depends on how a sort would order them.

    Args:
        logits: (..., V), any strides; float16, bfloat16 or float32; V from 1 to 65,536. More than two leading
            dimensions are copied if they cannot be viewed as two.
        uniform: (...) or (..., m), float32 or float64 in [0, 1); with m numbers per row, m codes are drawn
            independently from the same distribution, which is filtered once. Values are not checked: below 0
            they give the first possible code, from 1 on, or NaN, the last.
        unconditional: like logits; needed if guidance is not 0.
        guidance: weight w of classifier-free guidance (Ho and Salimans, arXiv 2207.12598).
        top_k: number of largest logits to keep; those equal to the last of them are kept too. 0 is off.
        top_p: keep the smallest set of codes that has at least this probability of what top_k left (Holtzman
            et al., arXiv 1904.09751), at least one; of equal logits at its edge, those of lower index are
            kept first. 0 and 1 are off.

    Returns:
        int64, shaped like uniform. Deterministic. No code of zero probability is drawn: -inf, NaN (after
        mixing) and what underflows. If inf occurs, such codes share all of the probability. A row that leaves
        nothing to draw, all -inf or NaN, gives code 0; no error is raised, as that would wait for the device.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, dtype or device; the message names it.
    """
    _check(logits, uniform, unconditional)
    guidance = _number("guidance", guidance, float)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance must be finite, got {guidance}")
    if guidance != 0 and unconditional is None:
        raise ValueError(f"guidance {guidance} needs unconditional logits, got None")
    top_k, top_p = check_filters(top_k, top_p)
    if guidance == 0:
        unconditional = None
    return sample_codes_op(
        logits.detach(),
        None if unconditional is None else unconditional.detach(),
        uniform.detach(),
        float(guidance),
        top_k,
        float(top_p),
    )


def _check(logits: Tensor, uniform: Tensor, unconditional: Tensor | None) -> None:
    for name, tensor in (("logits", logits), ("uniform", uniform), ("unconditional", unconditional)):
        if tensor is None and name == "unconditional":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device}, logits on {logits.device}")
    if logits.dtype not in _DTYPES:
        raise TypeError(f"logits must be float16, bfloat16 or float32, got {logits.dtype}")
    if logits.dim() < 1 or not 1 <= logits.shape[-1] <= MAX_VOCABULARY:
        raise ValueError(
            f"logits must be (..., V) with V from 1 to {MAX_VOCABULARY:,}, got shape {tuple(logits.shape)}"
        )
    if unconditional is not None and unconditional.dtype != logits.dtype:
        raise TypeError(f"unconditional must be {logits.dtype} like logits, got {unconditional.dtype}")
    if unconditional is not None and unconditional.shape != logits.shape:
        raise ValueError(
            f"unconditional must have the shape of logits, {tuple(logits.shape)}, "
            f"got {tuple(unconditional.shape)}"
        )
    if uniform.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"uniform must be float32 or float64, got {uniform.dtype}")
    rows = logits.shape[:-1]
    if uniform.shape[: len(rows)] != rows or uniform.dim() > logits.dim():
        raise ValueError(
            f"uniform must have shape {tuple(rows)}, or one more dimension for several codes per row, "
            f"got {tuple(uniform.shape)}"
        )


def check_filters(top_k: int, top_p: float) -> tuple[int, float]:
    """Return the filters of `sample_codes` as Python's numbers, or raise as it does."""
    top_k, top_p = _number("top_k", top_k, int), _number("top_p", top_p, float)
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or a positive number of codes, got {top_k}")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be between 0 (off) and 1, got {top_p}")
    return top_k, top_p


def _number(name: str, value: Any, kind: type) -> Any:
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (kind, int)):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(value).__name__}")
    return number


@torch.library.custom_op(
    "mvar_kernels::sample_codes",
    mutates_args=(),
    schema="(Tensor logits, Tensor? unconditional, Tensor uniform, float guidance, int top_k, float top_p)"
    " -> Tensor",
)
def sample_codes_op(logits, unconditional, uniform, guidance, top_k, top_p):  # type: ignore[no-untyped-def]
    """Return the codes, shaped like uniform."""
    if uniform.numel() == 0:
        return torch.empty(uniform.shape, dtype=torch.int64, device=uniform.device)
    if _has_kernel(logits.device):
        from mvar_kernels.backends.triton.kernel_sample import draw_codes
    else:
        from mvar_kernels.backends.codes import draw_codes
    logits = in_three_dimensions(logits)
    if unconditional is not None:
        unconditional = in_three_dimensions(unconditional)
    per_row = uniform.float().reshape(logits.shape[0] * logits.shape[1], -1)
    return draw_codes(logits, unconditional, per_row, guidance, top_k, top_p).view(uniform.shape)


@sample_codes_op.register_fake
def _(logits, unconditional, uniform, guidance, top_k, top_p):  # type: ignore[no-untyped-def]
    return torch.empty(uniform.shape, dtype=torch.int64, device=uniform.device)


def in_three_dimensions(logits: Tensor) -> Tensor:
    """Return (..., V) as (outer, inner, V): a view, unless more dimensions forbid one."""
    if logits.dim() <= 3:
        return logits[(None,) * (3 - logits.dim())]
    return logits.flatten(0, -3)


@functools.cache
def _has_kernel(device: torch.device) -> bool:
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
