"""Every row of the tile table as cases: types, head dimensions, and the variants of the kernels in turn.

The rows are read from the table, so that a new row, or a row's new head dimension, is a case at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from mvar_kernels import Neighborhood, Pyramid
from mvar_kernels.backends import AttentionCall
from mvar_kernels.backends.triton import launch
from mvar_kernels.backends.triton.tile_config import Row
from mvar_kernels.backends.triton.tile_table import rows_for, tile_row

from kernel_cases import draw_inputs, in_float64, largest_error, plain_pytorch
from triton_support import DEVICE, NAMES

# Odd ones and others that are padded; the largest dimension of every row is added.
DIMS = (1, 3, 17, 63, 80, 253)
KINDS = {2: ("fp16", "bf16"), 4: ("fp32", "tf32")}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}
TF32_EPS = 2.0**-10
# More rows and columns of keys than mask features, for tiles of any shape.
SPLIT_WINDOW = Neighborhood.of_grids((3, 40), (3, 40), (2, 31))
WHOLE_WINDOWS = (
    Neighborhood.of_grids((7, 9), (11, 12), (4, 3)),
    Pyramid((1, 2, (3, 4), 9), 5, 1).neighborhood(),
    Neighborhood.of_grids((12, 7), (5, 6), (3, 5)),
    Pyramid((1, 3, 5), 3).causal_neighborhood(),
)


class Variant(NamedTuple):
    """What selects other machine code for the same row, or another path through it.

    Attributes:
        split: the window has more rows and columns than the mask has features. Factors of cosine attention
            are negative here.
        wide: 64-bit offsets (WIDE), forced; tests/triton/test_memory.py has tensors that need them.
        use_lse: a gradient reaches lse (HAS_DLSE).
        packed: key and value have one stride (SAME_KV_STRIDE); otherwise every operand lies alone in NaN.
    """

    split: bool
    wide: bool
    use_lse: bool
    packed: bool


# Any two of split, wide and use_lse meet in all four combinations.
VARIANTS = (
    Variant(split=False, wide=False, use_lse=False, packed=True),
    Variant(split=True, wide=False, use_lse=True, packed=False),
    Variant(split=True, wide=True, use_lse=False, packed=True),
    Variant(split=False, wide=True, use_lse=True, packed=False),
)


class TableCase(NamedTuple):
    """One forward and backward.

    Attributes:
        row: what the table must choose.
        kind: "fp16", "bf16", "fp32" or "tf32".
        dim: head dimension.
        variant: see Variant.
        number: chooses the shape and seeds the inputs.
    """

    row: Row
    kind: str
    dim: int
    variant: Variant
    number: int

    def __str__(self) -> str:
        on = [name for name, value in zip(Variant._fields, self.variant) if value]
        attention = "cosine" if self.row.cosine else "dot"
        return "-".join([f"{self.row.family}:{self.row.max_dim}", attention, self.kind, f"D{self.dim}", *on])


def table_cases(architecture: str) -> list[TableCase]:
    """Return the cases of every row that serves an architecture.

    The two largest head dimensions of a row take both types, which makes four cases, one per variant; smaller
    ones take turns.
    """
    dims: dict[Row, list[int]] = {}
    for row in rows_for(architecture):
        for dim in sorted({*DIMS, row.max_dim}, reverse=True):
            # A cosine in one dimension is a sign: its gradient is 0, and what is left of it is rounding.
            exists = dim <= row.max_dim and (dim > 1 or not row.cosine)
            if exists and tile_row(architecture, dim, row.bytes, row.cosine) == row:
                dims.setdefault(row, []).append(dim)
    return [
        TableCase(row, kind, dim, VARIANTS[(2 * i_dim + i_kind) % len(VARIANTS)], 2 * i_dim + i_kind)
        for row, own in dims.items()
        for i_dim, dim in enumerate(own)
        for i_kind, kind in enumerate(KINDS[row.bytes])
        if i_dim < 2 or i_kind == i_dim % 2
    ]


def islands(tensors: list[torch.Tensor], sea: float = float("nan")) -> list[torch.Tensor]:
    """The same values in memory that holds `sea` around every row, no two with the same strides."""
    found = []
    for index, tensor in enumerate(tensors):
        b, length, h, d = tensor.shape
        size = (b, length + 2, h, d + 8 * (index + 1))
        around = torch.full(size, sea, dtype=tensor.dtype, device=tensor.device)
        island = around[:, 1:-1, :, :d]
        island.copy_(tensor)
        found.append(island)
    return found


class _Tf32Product(torch.autograd.Function):
    """a @ b in float32 of operands rounded to TF32, and its gradients likewise."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return _to_tf32(a) @ _to_tf32(b)

    @staticmethod
    def backward(ctx, grad):
        a, b = map(_to_tf32, ctx.saved_tensors)
        grad = _to_tf32(grad)
        return grad @ b.mT, a.mT @ grad


def _to_tf32(values: torch.Tensor) -> torch.Tensor:
    """Round float32 to 10 bits of mantissa."""
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _written_out(inputs, neighborhood, scale, product, use_lse):
    """Return out, lse and gradients of attention written as two products and a softmax, in float32."""
    leaves = [None if t is None else t.detach().float().requires_grad_() for t in inputs[:4]]
    q, k, v = (tensor.transpose(1, 2) for tensor in leaves[:3])
    if leaves[3] is not None:
        q, k = F.normalize(q, dim=-1, eps=1e-12) * leaves[3][:, None, None], F.normalize(k, dim=-1, eps=1e-12)
    logits = (product(q, k.mT) * scale).masked_fill(~neighborhood.mask(), -torch.inf)
    lse = logits.logsumexp(-1)
    out = product((logits - lse[..., None]).exp(), v).transpose(1, 2)
    outputs, gradients = (
        ([out, lse], [inputs[4].float(), inputs[5]]) if use_lse else ([out], [inputs[4].float()])
    )
    used = [leaf for leaf in leaves if leaf is not None]
    return out.detach(), lse.detach(), torch.autograd.grad(outputs, used, gradients)


def _plain(case, inputs, neighborhood, scale, truth, truth_without_lse):
    """Return out, lse and gradients as plain PyTorch has them in the type of a case."""
    use_lse = case.variant.use_lse
    if case.kind == "tf32":
        return _written_out(inputs, neighborhood, scale, _Tf32Product.apply, use_lse)
    out, grads = plain_pytorch(inputs, neighborhood, scale)
    # SDPA returns no lse. What its gradient adds is taken as exact, and rounded with the rest.
    grads = [
        (grad.double() + whole - without).to(grad.dtype)
        for grad, whole, without in zip(grads, truth, truth_without_lse)
    ]
    return out, _written_out(inputs, neighborhood, scale, torch.matmul, False)[1], grads


def run_case(case: TableCase, monkeypatch) -> tuple[list, list]:
    """Run forward and backward of one case; returns inputs on the CPU, and out, lse and the gradients."""
    split, wide, use_lse, packed = case.variant
    cosine = case.row.cosine
    inputs = list(
        draw_inputs(
            # A second head doubles the time.
            _neighborhood(case), batch=1, heads=1 if case.dim > 100 else 2, dim=case.dim,
            dtype=DTYPES[case.kind], cosine=cosine, seed=case.number,
        )
    )  # fmt: skip
    if cosine and split:
        inputs[3] = -inputs[3]
    real = launch._constants
    monkeypatch.setattr(launch, "_tf32_allowed", lambda: case.kind == "tf32")
    if wide:
        monkeypatch.setattr(launch, "_constants", lambda *given: {**real(*given), "WIDE": True})
    on_device = [None if tensor is None else tensor.to(DEVICE) for tensor in inputs]
    if not packed:
        on_device[0], on_device[1], on_device[2], on_device[4] = islands([*on_device[:3], on_device[4]])
    query, key, value, factor, grad_out, grad_lse = on_device
    assert launch._same_kv_stride(key, value) == packed
    call = AttentionCall(query, key, value, factor, _neighborhood(case), _scale(case))
    out, lse = launch.forward(call)
    grads = launch.backward(call, out, lse, grad_out, grad_lse if use_lse else None)
    return inputs, [out, lse, *(grad for grad in grads if grad is not None)]


def _neighborhood(case: TableCase) -> Neighborhood:
    return SPLIT_WINDOW if case.variant.split else WHOLE_WINDOWS[case.number % len(WHOLE_WINDOWS)]


def _scale(case: TableCase) -> float:
    return 1.0 if case.row.cosine else case.dim**-0.5


def assert_within_twice_plain(case: TableCase, monkeypatch) -> None:
    """Hold a case to twice the error of plain PyTorch in its type, and a few units in the last place."""
    inputs, results = run_case(case, monkeypatch)
    neighborhood, scale, use_lse = _neighborhood(case), _scale(case), case.variant.use_lse
    true_out, true_lse, truth = in_float64(inputs, neighborhood, scale, use_lse)
    without_lse = in_float64(inputs, neighborhood, scale, False)[2]
    truth, without_lse = ([grad for grad in grads if grad is not None] for grads in (truth, without_lse))
    plain_out, plain_lse, plain_grads = _plain(case, inputs, neighborhood, scale, truth, without_lse)
    plain, true = (plain_out, plain_lse, *plain_grads), (true_out, true_lse, *truth)
    for name, ours, theirs, exact in zip(("out", "lse", *NAMES), results, plain, true, strict=False):
        # The gradient of logit_scale is one sum of random signs: there, of the sum's typical size.
        size = exact.abs().max().item() if name != "dlogit_scale" else 2 * neighborhood.num_queries**0.5
        eps = torch.finfo(torch.float32 if name == "lse" else DTYPES[case.kind]).eps
        if case.kind == "tf32" and name == "dlogit_scale":
            eps = TF32_EPS
        # gfx942 adds float32 products two by two, plain PyTorch in blocks: the error of such a sum grows with
        # the root of its length. At D 256 dq errs 3.6 times as much.
        sequential = case.row.family == "hip" and case.kind == "fp32"
        units = max(2.0, case.dim**0.5 / 2) if sequential else 2.0
        error, allowed = largest_error(ours, exact), 2 * largest_error(theirs, exact) + units * eps * size
        assert error <= allowed, f"{name} of {case}: error {error:.2e} > {allowed:.2e}"
