"""The pages of the documentation, taken apart: code blocks, commands and links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.S
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_INLINE = re.compile(r"`([^`]+)`")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        line: the line of its fence in the page, from 1.
        language: what stands behind the fence, such as "python" or "sh".
        text: the code.
        reason: why it is not run, from the comment above it; None if it is run.
    """

    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(text.count("\n", 0, m.start("language")) + 1, m["language"], m["text"], m["reason"])
        for m in _FENCE.finditer(text)
    ]


def links(page: Path) -> list[str]:
    """Targets of links and images."""
    return [first or second for first, second in _LINK.findall(_FENCE.sub("", page.read_text()))]


def commands(page: Path) -> list[list[str]]:
    """Words of every `mvar ...`, `make ...` and `python ...` command, in shell blocks and in running text."""
    text = page.read_text()
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    # A command in running text may be broken over two lines.
    lines += [span.replace("\n", " ") for span in _INLINE.findall(_FENCE.sub("", text))]
    found = []
    for line in lines:
        words = shlex.split(re.sub(r"[\[\]]", "", line), comments=True) if line.count("'") % 2 == 0 else []
        if len(words) > 1 and words[0] in ("mvar", "make", "python", "pytest", "torchrun"):
            found.append(words)
    return found


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
