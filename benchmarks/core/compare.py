"""Compare two runs: what changed beyond their noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_KEY = ("case", "kernel_size", "batch", "heads", "head_dim", "dtype", "cosine", "direction", "competitor")


def changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each entry that got faster or slower, or that can or cannot run any more.

    A change counts where the two ranges from the 20th to the 80th percentile do not overlap.

    Args:
        before, now: Contents of two attention.json files.
    """
    old_device, new_device = before["machine"].get("device"), now["machine"].get("device")
    if old_device != new_device:
        yield f"different machines: {old_device} before, {new_device} now"
    old = {tuple(r[name] for name in _KEY): r for r in before["records"]}
    new = {tuple(r[name] for name in _KEY): r for r in now["records"]}
    shared = [key for key in new if key in old]
    changed = [line for key in shared if (line := _change(old[key], new[key]))]
    yield from changed
    yield (
        f"{len(changed)} of {len(shared)} shared entries changed beyond noise; "
        f"{len(new) - len(shared)} are new, {len(old) - len(shared)} gone"
    )


def _change(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    title = f"{new['case']} k{new['kernel_size']} {new['direction']}, {new['competitor']}"
    if new["reason"]:
        return None if old["reason"] else f"{title}: now {new['reason']}"
    if old["reason"]:
        return f"{title}: runs now; before: {old['reason']}"
    if new["p20_ms"] <= old["p80_ms"] and new["p80_ms"] >= old["p20_ms"]:
        return None
    ratio = new["median_ms"] / old["median_ms"]
    word = "slower" if ratio > 1 else "faster"
    return f"{title}: {old['median_ms']:.3f} -> {new['median_ms']:.3f} ms ({word}, x {ratio:.2f})"
