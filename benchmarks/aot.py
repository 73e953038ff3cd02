"""Compile every kernel for GPUs that this machine does not have, and report what it takes.

    python -m benchmarks.aot --target cuda:90 --target hip:gfx942 [--head-dim 64] [--variants] [--json]

Without `--variants` that is the usual variant of each kernel: key and value of one stride, no gradient
through lse. With it, every other one too, one difference at a time (`VARIANTS`), and the kernel that computes
norms. The kernel of `sample_codes` follows for each of `VOCABULARIES`, unless a head dimension is given. The
exit code is 1 if a kernel spills registers or needs too much shared memory.

This needs triton 3.3 or newer, but no GPU, and cannot share a process with TRITON_INTERPRET=1. Registers,
spills and instruction counts of NVIDIA targets come from `cuobjdump`, which triton ships; those of AMD
targets from the compiler's metadata.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine_code import report
from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_config import SHARED_BYTES, Config, Row
from mvar_kernels.backends.triton.tile_table import rows_for, tile_row

TARGETS = ("cuda:80", "cuda:86", "cuda:89", "cuda:90", "cuda:100", "cuda:120", "hip:gfx942")
_ELEMENTS = {2: "bf16", 4: "fp32"}
_FEATURES = 16
_FLOATS = ("scale", "guidance", "grown", "top_p")
# Vocabularies of `sample_codes`: that of the released models, one that needs a mask, the largest whose rows
# stay in registers, and the largest of all.
VOCABULARIES = (4_096, 4_095, 8_192, 65_536)


# Constants that differ from the usual ones. "D" is added to the row's head dimension, "element" is another
# type.
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "lse": {"HAS_DLSE": True},
    "strides": {"SAME_KV_STRIDE": False},
    "wide": {"WIDE": True},
    "odd D": {"D": -3},
    "W 40": {"W": 40},
    "heads": {"GROUP": 4},
    "1-D": {"E": 32},
    "fp16": {"element": "fp16"},
    "tf32": {"PRECISION": "tf32"},
}


def kernels(row: Row) -> Iterator[tuple[str, Any, Config, dict[str, Any]]]:
    """Yield name, function, configuration and remaining constants of each kernel."""
    for name, config in (("forward", row.forward), ("dq", row.dq), ("dkdv", row.dkdv)):
        function, constants = variant(name, row.cosine)
        yield name, function, config, constants


def variant(name: str, cosine: bool) -> tuple[Any, dict[str, Any]]:
    """Return a kernel by name, with the constants that select its usual variant."""
    from mvar_kernels.backends.triton.kernel_backward import backward_dkdv, backward_dq
    from mvar_kernels.backends.triton.kernel_forward import forward_kernel

    return {
        "forward": (forward_kernel, {"COSINE": cosine, "SAME_KV_STRIDE": True}),
        "dq": (backward_dq, {"COSINE": cosine, "HAS_DLSE": False, "SAME_KV_STRIDE": True}),
        "dkdv": (backward_dkdv, {"COSINE": cosine}),
    }[name]


def _signature(
    names: list[str], element: str, constants: dict[str, Any]
) -> tuple[dict[str, str], dict[tuple[int, ...], list[list[Any]]]]:
    """Return the types of the arguments and what the launcher would specialize on.

    That is 16-byte alignment of pointers, and strides divisible by 16.
    """
    pointers = {
        **dict.fromkeys(("Q", "K", "V", "O", "DO", "DQ", "DK", "DV", "X"), f"*{element}"),
        **dict.fromkeys(("LOGITS", "UNCONDITIONAL"), f"*{element}"),
        **dict.fromkeys(("OUT", "LSE", "LSE2", "DLSE", "DELTA"), "*fp32"),
        **dict.fromkeys(("RQ", "RK", "FACTOR", "DFACTOR", "UNIFORM"), "*fp32"),
        "CODES": "*i64",
        **dict.fromkeys(("FIXED", "START", "LOOPED", "FIXED_MASK", "LOOPED_MASK"), "*i32"),
        **dict.fromkeys(("FIXED_MASKS", "LOOPED_MASKS"), "*bf16"),
    }
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = pointers[name]
        else:
            wide = constants.get("WIDE") and name.startswith("stride_")
            signature[name] = "fp32" if name in _FLOATS else "i64" if wide else "i32"
        if name not in constants and (name in pointers or name.startswith("stride_")):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, attributes


def compile_kernel(
    function: Any, target: str, element: str, config: Config, constants: dict[str, Any], dim: int
) -> Any:
    """Compile one kernel; strides of the head dimension are 1.

    Args:
        function: a kernel.
        target: such as "cuda:90".
        element: type of query, key and value: "fp16", "bf16" or "fp32".
        config: tile, chunk, warps and stages.
        constants: values of the kernel's remaining constants.
        dim: head dimension.

    Raises:
        ImportError: triton is absent, or older than 3.3, whose compiler takes other arguments.
    """
    import triton

    names = list(function.arg_names)
    fixed = {
        "D": dim, "BD": max(16, triton.next_power_of_2(dim)), "W": dim, "GROUP": 1,
        "BM": config.size, "BN": config.chunk,
        "E": _FEATURES, "WIDE": False, "PRECISION": "ieee", "CAST": False,
        **dict.fromkeys(("stride_qd", "stride_kd", "stride_vd", "stride_gd", "stride_d"), 1), **constants,
    }  # fmt: skip
    fixed["BW"] = max(16, triton.next_power_of_2(fixed["W"]))
    fixed = {name: value for name, value in fixed.items() if name in names}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    return _compile(function, target, fixed, *_signature(names, element, fixed), options)


def compile_sample_kernel(target: str, element: str, vocabulary: int) -> tuple[Any, Config]:
    """Compile the kernel of `sample_codes` with guidance, top_k and top_p; return its configuration too.

    Args:
        target: such as "cuda:90".
        element: type of the logits: "fp16", "bf16" or "fp32".
        vocabulary: logits per row.

    Raises:
        ImportError: as for `compile_kernel`.
    """
    from mvar_kernels.backends.triton.kernel_sample import block_of, sample_kernel

    size, num_warps = block_of(vocabulary)
    fixed = {"V": vocabulary, "BV": size, "stride_lv": 1, "stride_uv": 1}
    fixed.update(dict.fromkeys(("GUIDED", "TOP_K", "TOP_P"), True))
    options = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}
    signature, attributes = _signature(list(sample_kernel.arg_names), element, fixed)
    kernel = _compile(sample_kernel, target, fixed, signature, attributes, options)
    return kernel, Config(1, 1, size, num_warps, 1)


def _compile(
    function: Any,
    target: str,
    fixed: dict[str, Any],
    signature: dict[str, str],
    attributes: dict[tuple[int, ...], list[list[Any]]],
    options: dict[str, Any],
) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        raise ImportError(f"compiling ahead of time needs triton 3.3 or newer, here is {triton.__version__}")
    backend, architecture = target.split(":")
    gpu = (
        GPUTarget("cuda", int(architecture), 32) if backend == "cuda" else GPUTarget("hip", architecture, 64)
    )
    source = ASTSource(fn=function, signature=signature, constexprs=fixed, attrs=attributes)
    return triton.compile(source, target=gpu, options=options)


def run(
    targets: list[str], head_dim: int | None = None, variants: bool = False, numbers: list[int] | None = None
) -> list[dict[str, Any]]:
    """Return one report per kernel, variant, row and target.

    Those of `sample_codes` have the vocabulary as their variant, and no head dimension.

    Args:
        targets: such as "cuda:90".
        head_dim: only the rows that serve it, and no `sample_codes`.
        variants: rarer variants too.
        numbers: only these rows of a target, counted from 0.
    """
    names = list(VARIANTS) if variants else ["usual"]
    results: list[dict[str, Any]] = []
    for target in targets:
        rows = _rows(target, head_dim)
        for row in rows if numbers is None else [rows[number] for number in numbers]:
            results += _row_reports(target, row, names)
        if head_dim is None:
            results += _sample_reports(target, ("bf16", "fp32", "fp16") if variants else ("bf16",))
    return results


def _sample_reports(target: str, elements: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for vocabulary in VOCABULARIES:
        for element in elements:
            kernel, config = compile_sample_kernel(target, element, vocabulary)
            key = {
                "target": target,
                "kernel": "sample",
                "variant": f"V {vocabulary}",
                "cosine": False,
                "head_dim": None,
                "element": element,
            }
            yield _finding(key, config, report(kernel, target))


def _finding(key: dict[str, Any], config: Config, figures: dict[str, Any]) -> dict[str, Any]:
    """Return one entry of the report, with what is wrong with the kernel."""
    limit = SHARED_BYTES[architecture_name(key["target"])]
    problems = [f"spills {figures['spilled']} bytes"] if figures["spilled"] else []
    if figures["shared"] > limit:
        problems.append(f"needs {figures['shared']} of {limit} bytes of shared memory")
    return {**key, "config": list(config), **figures, "problems": problems}


def _rows(target: str, head_dim: int | None) -> tuple[Row, ...]:
    architecture = architecture_name(target)
    if head_dim is None:
        return rows_for(architecture)
    return tuple(
        tile_row(architecture, head_dim, size, cosine) for size in _ELEMENTS for cosine in (False, True)
    )


def architecture_name(target: str) -> str:
    """Turn "cuda:90" into "sm_90", and "hip:gfx942" into "gfx942"."""
    backend, architecture = target.split(":")
    return f"sm_{architecture}" if backend == "cuda" else architecture


def _row_reports(target: str, row: Row, variants: list[str]) -> Iterator[dict[str, Any]]:
    for variant_name in variants:
        for name, function, config, usual in _with_norms(row, variant_name):
            constants, element = {**usual, **VARIANTS[variant_name]}, _ELEMENTS[row.bytes]
            dim = row.max_dim + constants.pop("D", 0)
            element = constants.pop("element", element)
            if not _differs(variant_name, function, row):
                continue
            figures = report(compile_kernel(function, target, element, config, constants, dim), target)
            key = {
                "target": target,
                "kernel": name,
                "variant": variant_name,
                "cosine": row.cosine,
                "head_dim": row.max_dim,
                "element": element,
            }
            yield _finding(key, config, figures)


def _with_norms(row: Row, variant_name: str) -> Iterator[tuple[str, Any, Config, dict[str, Any]]]:
    yield from kernels(row)
    if row.cosine and variant_name in ("odd D", "fp16"):
        from mvar_kernels.backends.triton.launch import NORM_ROWS
        from mvar_kernels.backends.triton.primitives import inverse_norms

        yield "norms", inverse_norms, Config(1, NORM_ROWS, 1, 4, 3), {"SIGNED": True}


def _differs(variant_name: str, function: Any, row: Row) -> bool:
    """Return whether the kernel of this row has such a variant."""
    changed = VARIANTS[variant_name]
    if "element" in changed:
        return row.bytes == 2
    if "PRECISION" in changed:
        return row.bytes == 4
    return all(name in function.arg_names for name in changed)


def digest() -> str:
    """Return the SHA-256 of the files that decide how a kernel compiles."""
    folder = Path(tile_table.__file__).parent
    names = ["primitives.py", "tile_config.py", "tile_table.py"]
    files = [*sorted(folder.glob("kernel_*.py")), *(folder / name for name in names)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# Columns of the printed table, with their widths.
_COLUMNS = {
    "target": 11,
    "kernel": 8,
    "variant": 8,
    "cosine": 7,
    "head_dim": 9,
    "element": 8,
    "registers": 10,
    "spilled": 8,
    "shared": 8,
    "tensor_core": 12,
    "async_copy": 11,
    "loops": 12,
}


def _table(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "".join(name.ljust(width) for name, width in _COLUMNS.items()) + "tile, chunk, warps, stages"
    for result in results:
        cells = (str(result[name]).ljust(width) for name, width in _COLUMNS.items())
        yield "".join(cells) + f"{tuple(result['config'])} {'; '.join(result['problems'])}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot", description="Compile every kernel for GPUs that need not be here."
    )
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated; default: all")
    parser.add_argument(
        "--head-dim", type=int, default=None, help="only the table rows that serve this head dimension"
    )
    parser.add_argument("--row", type=int, action="append", help="only this row of a target; may be repeated")
    parser.add_argument(
        "--variants", action="store_true", help="rarer variants too, about seven times as many kernels"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--digest", action="store_true", help="compile nothing; print the kernels' digest")
    arguments = parser.parse_args()
    if arguments.digest:
        print(digest())
        return 0
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    try:
        targets = arguments.target or list(TARGETS)
        results = run(targets, arguments.head_dim, arguments.variants, arguments.row)
    except ImportError as error:
        parser.error(f"{error}; pip install -U triton")
    print(json.dumps(results, indent=1) if arguments.json else "\n".join(_table(results)))
    return int(any(result["problems"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
