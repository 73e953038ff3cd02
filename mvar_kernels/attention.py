"""The public attention functions: documentation and checks of the arguments. `ops.py` does the work.

Windows follow neighborhood attention (Hassani et al., arXiv 2204.07143), extended to unequal grids and
pyramids (MVAR, arXiv 2505.12742); `pyramid.py` defines them.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from mvar_kernels import dispatch, ops
from mvar_kernels.backends import AttentionCall
from mvar_kernels.neighborhood import MAX_RANK
from mvar_kernels.per_axis import Flags, Grid
from mvar_kernels.pyramid import Neighborhood, Pyramid

MAX_HEAD_DIM = 256
_LAYOUTS = {1: "(B, L, heads, D)", 2: "(B, H, W, heads, D)", 3: "(B, T, H, W, heads, D)"}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@overload
def spatial_markov_attn(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int | Grid = 7, *, stride: int | Grid = 1,
    dilation: int | Grid = 1, is_causal: bool | Flags = False, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def spatial_markov_attn(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int | Grid = 7, *, stride: int | Grid = 1,
    dilation: int | Grid = 1, is_causal: bool | Flags = False, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def spatial_markov_attn(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int | Grid = 7, *, stride: int | Grid = 1,
    dilation: int | Grid = 1, is_causal: bool | Flags = False, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: bool, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def spatial_markov_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | Grid = 7,
    *,
    stride: int | Grid = 1,
    dilation: int | Grid = 1,
    is_causal: bool | Flags = False,
    scale: float | None = None,
    logit_scale: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Let every query attend to a window of keys around its place, in one, two or three dimensions.

    The tensors' rank says in how many: (B, L, heads, D), (B, H, W, heads, D) or (B, T, H, W, heads, D). Per
    axis with n_q queries and n_k keys, query i looks at the k = min(kernel, n_k) keys from
    clamp(c - k // 2, 0, n_k - k) on, with c = ((2 i + 1) n_k) // (2 n_q). On equal grids c = i: NATTEN's
    `na1d`, `na2d` and `na3d`, except that a window larger than an axis is all of it. On unequal grids it is
    the cross-scale window. Even and rectangular windows and axes of one token are legal.

    Args:
        query: (B, *grid, heads, D), any strides; D from 1 to 256; float16, bfloat16, float32, or float64
            (not on `triton`).
        key: (B, *grid of keys, key heads, D), of query's type and device. The heads of queries are a multiple
            of the key heads: each of those serves as many heads of queries, one after the other.
        value: (B, *grid of keys, key heads, Dv); Dv from 1 to 256.
        kernel_size: an int or one per axis, at least 1.
        stride: an int or one per axis, at most `kernel_size`: that many queries next to each other share the
            window of the one in their middle. As `dilation` and `is_causal`, it takes equal grids.
        dilation: an int or one per axis, at most the axis: windows hold every dilation-th token.
        is_causal: a bool or one per axis: no query sees a key behind itself along that axis.
        scale: factor of the logits; default D^-0.5, or 1.0 with `logit_scale`.
        logit_scale: (heads,) switches to cosine attention: logits are scale * logit_scale_h * cos(q, k), with
            norms clamped at 1e-12. Autocast does not cast it and nothing clamps it; 0 and negative values are
            fine. On `triton` the output is right while |scale * logit_scale| is below 1e8: beyond, float32
            rounds a logit by more than 8 and a weight may overflow to NaN. Its gradients round each weight by
            up to 2e-7 x |scale * logit_scale|: 2e-5 at 100, 2 % at 1e5, so train below that. `tiled` and
            `sdpa` hold logit_scale * q / |q| in q's type: up to 6e4 in float16, 1e8 in others. On `triton`
            keep |q| |k| below 2^52, which float16 cannot exceed: beyond, a logit_scale near 0 no longer hides
            the keys outside the window.
        return_lse: also return the natural-log sum of exponentials of the logits.
        backend: "auto", "triton", "tiled", "sdpa" or "reference". A named one that cannot run raises; "auto"
            logs its choice once.

    Returns:
        (B, *grid, heads, Dv) in query's type; with `return_lse` also (B, *grid, heads) float32 (float64 for
        float64). Both are differentiable and deterministic bit for bit, forward and backward. Keys that no
        query sees get exact zeros.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, dtype or device; the message names it.
        RuntimeError: the named backend cannot run here.

    A NaN or infinity in a key or value reaches all that see it. It may also reach queries that are computed
    together with those, as hidden scores are added to and hidden weights are 0: their tile on `triton` and
    `tiled`, all queries of their scale on `sdpa`, on `reference` none for a key and all for a value.

    Grids whose rows are not evenly strided (crops) are copied once; views into packed qkv are not.
    """
    rank = query.dim() - 3 if isinstance(query, Tensor) else 2
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(
            "query must be (B, L, heads, D), (B, H, W, heads, D) or (B, T, H, W, heads, D), "
            f"got shape {tuple(query.shape)}"
        )
    _check_tensors(query, key, value, rank=rank + 3, layout=_LAYOUTS[rank])
    query_grid, key_grid = tuple(query.shape[1:-2]), tuple(key.shape[1:-2])
    if any(side < 1 for side in (*query_grid, *key_grid)):
        raise ValueError(
            f"query and key grids must have at least one token per axis, got {query_grid} and {key_grid}"
        )
    neighborhood = Neighborhood.of_grids(query_grid, key_grid, kernel_size, stride, dilation, is_causal)
    q, k, v = (tensor.flatten(1, rank) for tensor in (query, key, value))
    out, lse = _attend(q, k, v, neighborhood, scale, logit_scale, backend, return_lse)
    out = out.unflatten(1, query_grid)
    return out if lse is None else (out, lse.unflatten(1, query_grid))


@overload
def pyramid_markov_attn(
    query: Tensor, key: Tensor, value: Tensor, pyramid: Pyramid, *, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def pyramid_markov_attn(
    query: Tensor, key: Tensor, value: Tensor, pyramid: Pyramid, *, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def pyramid_markov_attn(
    query: Tensor, key: Tensor, value: Tensor, pyramid: Pyramid, *, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: bool, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def pyramid_markov_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pyramid: Pyramid,
    *,
    scale: float | None = None,
    logit_scale: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Let every token attend inside its own scale, over the windows of `pyramid`; all scales in one launch.

    Args:
        query: (B, L, heads, D) with L = pyramid.length, any strides (views into a packed qkv are the normal
            case).
        key: (B, L, key heads, D), as for `spatial_markov_attn`.
        value: (B, L, key heads, Dv).
        pyramid: the scales and their windows.
        scale: as for `spatial_markov_attn`.
        logit_scale: as for `spatial_markov_attn`.
        return_lse: as for `spatial_markov_attn`.
        backend: as for `spatial_markov_attn`.

    Returns:
        (B, L, heads, Dv) in query's type; with `return_lse` also (B, L, heads) float32 (float64 for float64).

    Raises:
        TypeError, ValueError, RuntimeError: as for `spatial_markov_attn`.
    """
    if not isinstance(pyramid, Pyramid):
        raise TypeError(f"pyramid must be a Pyramid, got {type(pyramid).__name__}")
    _check_tensors(query, key, value, rank=4, layout="(B, L, heads, D)")
    for name, tensor in (("query", query), ("key", key)):
        if tensor.shape[1] != pyramid.length:
            raise ValueError(f"{name} has {tensor.shape[1]} tokens, the pyramid has {pyramid.length}")
    out, lse = _attend(query, key, value, pyramid.neighborhood(), scale, logit_scale, backend, return_lse)
    return out if lse is None else (out, lse)


@overload
def neighborhood_attn(
    query: Tensor, key: Tensor, value: Tensor, neighborhood: Neighborhood, *, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def neighborhood_attn(
    query: Tensor, key: Tensor, value: Tensor, neighborhood: Neighborhood, *, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def neighborhood_attn(
    query: Tensor, key: Tensor, value: Tensor, neighborhood: Neighborhood, *, scale: float | None = None,
    logit_scale: Tensor | None = None, return_lse: bool, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def neighborhood_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    neighborhood: Neighborhood,
    *,
    scale: float | None = None,
    logit_scale: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend over any `Neighborhood`: the lower-level door, which the two other functions and the models go
    through.

    Use it for what is neither a grid nor a pyramid, such as VAR's block-causal attention
    (`pyramid.causal_neighborhood()`), or one scale of queries over cached keys of several.

    Args:
        query: (B, Lq, heads, D), any strides.
        key: (B, Lk, key heads, D), any strides.
        value: (B, Lk, key heads, Dv), any strides.
        neighborhood: which keys each query attends to.
        scale: as for `spatial_markov_attn`.
        logit_scale: as for `spatial_markov_attn`.
        return_lse: as for `spatial_markov_attn`.
        backend: as for `spatial_markov_attn`.

    Returns:
        (B, Lq, heads, Dv) in query's type; with `return_lse` also (B, Lq, heads) float32 (float64 for
        float64).

    Raises:
        TypeError, ValueError, RuntimeError: as for `spatial_markov_attn`.
    """
    if not isinstance(neighborhood, Neighborhood):
        raise TypeError(f"neighborhood must be a Neighborhood, got {type(neighborhood).__name__}")
    # Compiled code checks when the operator decodes it: older versions of torch cannot trace the check.
    if not torch.compiler.is_compiling():
        neighborhood.check()
    _check_tensors(query, key, value, rank=4, layout="(B, L, heads, D)")
    for name, tensor, expected in (
        ("query", query, neighborhood.num_queries),
        ("key", key, neighborhood.num_keys),
    ):
        if tensor.shape[1] != expected:
            raise ValueError(f"{name} has {tensor.shape[1]} tokens, the neighborhood has {expected}")
    out, lse = _attend(query, key, value, neighborhood, scale, logit_scale, backend, return_lse)
    return out if lse is None else (out, lse)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    neighborhood: Neighborhood,
    scale: float | None,
    logit_scale: Tensor | None,
    backend: str,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return out (B, Lq, H, D) and, with `return_lse`, lse (B, Lq, H)."""
    dispatch.check_name(backend)
    if logit_scale is not None:
        _check_logit_scale(logit_scale, query)
    query, key, value = _autocast(query, key, value)
    if scale is None:
        scale = query.shape[-1] ** -0.5 if logit_scale is None else 1.0
    try:
        scale = float(scale)
    except (TypeError, ValueError):
        raise TypeError(f"scale must be a number or None, got {scale!r}") from None
    call = AttentionCall(query, key, value, logit_scale, neighborhood, scale)
    chosen = dispatch.resolve(backend, call)
    if backend == "auto" and not return_lse and not ops.transformed():
        direct = dispatch.eager_forward(chosen, call)
        if direct is not None:
            return direct, None
    out, lse = ops.attend(call, chosen)
    return out, lse.transpose(1, 2) if return_lse else None


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's type where it is on, as `scaled_dot_product_attention` does; float64 stays."""
    device_type = tensors[0].device.type
    if not ops.autocasts(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, rank: int, layout: str) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dim() != rank:
            raise ValueError(f"{name} must have {rank} dimensions {layout}, got shape {tuple(tensor.shape)}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}")
    # Under autocast operands may come in different types: `_autocast` casts them to one.
    if len({query.dtype, key.dtype, value.dtype}) > 1 and not ops.autocasts(query.device.type):
        raise TypeError(
            f"query, key and value must be of one type, got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            "key and value must have one shape but for the last size, "
            f"got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    for axis, what in ((0, "batch size"), (rank - 1, "head dimension")):
        if query.shape[axis] != key.shape[axis]:
            raise ValueError(
                f"query and key must have one {what}, got {query.shape[axis]} and {key.shape[axis]}"
            )
    heads, own = query.shape[-2], key.shape[-2]
    if heads != own and (own < 1 or heads % own):
        raise ValueError(f"the number of heads of query must be a multiple of key's, got {heads} and {own}")
    for name, tensor in (("query", query), ("value", value)):
        if not 1 <= tensor.shape[-1] <= MAX_HEAD_DIM:
            raise ValueError(
                f"{name}'s head dimension must be between 1 and {MAX_HEAD_DIM}, got {tensor.shape[-1]}"
            )


def _check_logit_scale(logit_scale: Tensor, query: Tensor) -> None:
    heads = query.shape[-2]
    if not isinstance(logit_scale, Tensor):
        raise TypeError(f"logit_scale must be a tensor, got {type(logit_scale).__name__}")
    if tuple(logit_scale.shape) != (heads,):
        raise ValueError(f"logit_scale must be (heads,) = ({heads},), got {tuple(logit_scale.shape)}")
    if not logit_scale.is_floating_point():
        raise TypeError(f"logit_scale must be floating-point, got {logit_scale.dtype}")
    if logit_scale.device != query.device:
        raise ValueError(f"logit_scale is on {logit_scale.device}, query on {query.device}")
