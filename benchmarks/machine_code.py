"""What a compiled kernel takes, read from its machine code: registers, spills, instructions, main loops."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

_TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA|IMMA|DMMA|v_mfma\w*)")
_ASYNC_COPY = re.compile(r"\b(LDGSTS|UBLKCP|UTMALDG|buffer_load\w* .*\blds\b)")
# Shorter loops, such as those that wait at a barrier, are not main loops.
_SHORTEST_MAIN_LOOP = 40


def report(kernel: Any, target: str) -> dict[str, Any]:
    """Return a kernel's registers, spilled bytes, shared memory, instruction counts and main-loop lengths."""
    shared = int(kernel.metadata.shared)
    if target.startswith("hip"):
        assembly = kernel.asm["amdgcn"]

        def number(key: str) -> int:
            match = re.search(rf"\.{key}:\s+(\d+)", assembly)
            return int(match[1]) if match else 0

        body = [line.strip() for line in assembly.splitlines()]
        figures = {
            "registers": number("vgpr_count"),
            "spilled": number("private_segment_fixed_size"),
            "loops": [],
        }
    else:
        dump = _cuobjdump(kernel.asm["cubin"])
        usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("--dump-resource-usage"))
        if usage is None:
            raise RuntimeError("cuobjdump reported no resource usage")
        code = _instructions(dump("--dump-sass"))
        body = [text for _, text in code]
        figures = {"registers": int(usage[1]), "spilled": int(usage[2]), "loops": _main_loops(code)}
    return {
        **figures,
        "shared": shared,
        "tensor_core": sum(bool(_TENSOR_CORE.search(line)) for line in body),
        "async_copy": sum(bool(_ASYNC_COPY.search(line)) for line in body),
        "instructions": len(body),
    }


def _cuobjdump(cubin: bytes) -> Any:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

    def dump(flag: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.cubin"
            file.write_bytes(cubin)
            return subprocess.run(
                [str(tool), flag, str(file)], capture_output=True, text=True, check=True
            ).stdout

    return dump


def _instructions(sass: str) -> list[tuple[int, str]]:
    """Return (address, text without predicate) of every instruction."""
    matches = (
        re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.]+.*);", line)
        for line in sass.splitlines()
    )
    return [(int(match[1], 16), match[2]) for match in matches if match]


def _main_loops(code: list[tuple[int, str]]) -> list[int]:
    """Count the instructions between each backward branch and its target."""
    lengths = []
    for address, text in code:
        target = re.search(r"0x([0-9a-f]+)", text) if text.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            length = sum(int(target[1], 16) <= inside <= address for inside, _ in code)
            if length > _SHORTEST_MAIN_LOOP:
                lengths.append(length)
    return lengths
