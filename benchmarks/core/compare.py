"""What changed between two runs beyond their noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_KEY = ("case", "kernel_size", "batch", "heads", "head_dim", "dtype", "cosine", "direction", "competitor")


def changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Lines for what got faster, slower, appeared or vanished; `before` and `now` are written attention.json files.

    A change counts where the two runs' ranges from the 20th to the 80th percentile do not overlap.
    """
    if before["machine"].get("device") != now["machine"].get("device"):
        yield f"different machines: {before['machine'].get('device')} before, {now['machine'].get('device')} now"
    old = {tuple(r[name] for name in _KEY): r for r in before["records"]}
    new = {tuple(r[name] for name in _KEY): r for r in now["records"]}
    count = 0
    for key, r in new.items():
        earlier = old.get(key)
        if earlier is None:
            continue
        title = f"{r['case']} k{r['kernel_size']} {r['direction']}, {r['competitor']}"
        if bool(earlier["reason"]) != bool(r["reason"]):
            count += 1
            yield f"{title}: {'now ' + r['reason'] if r['reason'] else 'runs now; before: ' + earlier['reason']}"
        elif not r["reason"] and (r["p20_ms"] > earlier["p80_ms"] or r["p80_ms"] < earlier["p20_ms"]):
            count += 1
            ratio = r["median_ms"] / earlier["median_ms"]
            yield f"{title}: {earlier['median_ms']:.3f} -> {r['median_ms']:.3f} ms ({'slower' if ratio > 1 else 'faster'}, x {ratio:.2f})"
    shared = len(set(old) & set(new))
    yield f"{count} of {shared} shared entries changed beyond noise; {len(set(new) - set(old))} are new, {len(set(old) - set(new))} gone"
