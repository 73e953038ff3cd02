"""The house in figures: files and lines per room, circles, arrows up, longest function, share of comments.

    python scripts/house_numbers.py [--word WORD] [FOLDER ...]

Each folder is a checkout, by default this one; `git archive 9b64a4a | tar x -C FOLDER` makes an earlier one.
`--word guidance_schedule` counts the files that a sampling option touches. The layers are those of
tests/test_house.py; files that are in none of them have no arrows.
"""

import argparse
import ast
import re
import statistics
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from test_house import KERNELS, MODELS  # noqa: E402

from house import Module, arrows_up, circles, layer_of, read_modules  # noqa: E402

_PACKAGES = ("mvar_kernels", "mvar_models")


def numbers(root: Path, words: list[str]) -> dict[str, str]:
    """Return the figures of a checkout by name."""
    read = read_modules(root)
    for module in read.values():
        if module.only_exports:
            module.imports = set()
    files = [module for module in read.values() if module.name.startswith(_PACKAGES)]
    texts = {module.path: module.path.read_text(encoding="utf-8") for module in files}
    lines = [line for text in texts.values() for line in text.splitlines()]
    lengths = {path: len(text.splitlines()) for path, text in texts.items()}
    length, name = max(longest_function(module) for module in files)
    comments, code = comments_and_code(files)
    found = circles(read)
    layers = KERNELS + MODELS
    homeless = [m.name for m in files if layer_of(m.name, layers) is None and m.name != "mvar_models"]
    tests = [path for path in (root / "tests").rglob("*.py") if "emulator" not in path.parts]
    folders = [path.parent for path in texts]
    fullest = max(set(folders), key=folders.count)
    mentions = {word: sum(bool(re.search(rf"\b{word}\b", text)) for text in texts.values()) for word in words}
    return {
        "files in the two packages": str(len(files)),
        "lines in the two packages": f"{len(lines):,}",
        "median lines per file of mvar_models": f"{median_of(lengths, root / 'mvar_models'):.0f}",
        **rooms(root, lengths),
        "files in tests, without the emulator": str(len(tests)),
        "most in one folder": f"{folders.count(fullest)} in {fullest.name}",
        "files at the root of mvar_models": str(folders.count(root / "mvar_models")),
        "circles of files": f"{len(found)}"
        + (f" (of {', '.join(str(len(each)) for each in found)} files)" if found else ""),
        "arrows up": str(len(arrows_up(read, KERNELS)) + len(arrows_up(read, MODELS))),
        "files in no layer": str(len(homeless)),
        "longest file": f"{max(lengths.values())} lines, {max(lengths, key=lambda path: lengths[path]).name}",
        "longest function": f"{length} lines, {name}",
        "lines over 110 columns": f"{sum(len(line) > 110 for line in lines)} of {len(lines)}",
        "comment lines per line of code": f"{comments / code:.1%}",
        **{f"files that mention {word}": str(count) for word, count in mentions.items()},
    }


def median_of(lengths: dict[Path, int], package: Path) -> float:
    """Return the median number of lines of a package's files."""
    return statistics.median(length for path, length in lengths.items() if package in path.parents)


def rooms(root: Path, lengths: dict[Path, int]) -> dict[str, str]:
    """Return files and lines of each room: a folder below a package, or the files at its root."""
    sizes: dict[str, list[int]] = {}
    for path, length in lengths.items():
        inside = path.relative_to(root).parts
        sizes.setdefault(inside[0] if len(inside) == 2 else "/".join(inside[:2]), []).append(length)
    return {f"- {room}": f"{len(of)} files, {sum(of):,} lines" for room, of in sorted(sizes.items())}


def longest_function(module: Module) -> tuple[int, str]:
    """Return lines and name of the longest function."""
    found = [
        (node.end_lineno - node.lineno + 1, f"{module.name}:{node.name}")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]
    return max(found, default=(0, ""))


def comments_and_code(files: list[Module]) -> tuple[int, int]:
    """Return the lines that are a comment alone, and those that hold code; docstrings are neither."""
    comments, code = 0, 0
    for module in files:
        lines: set[int] = set()
        with tokenize.open(module.path) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
                    comments += 1
                elif token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
                    lines |= set(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        code += len(lines)
    return comments, code


def main() -> None:
    """Print a Markdown table with a column per checkout."""
    parser = argparse.ArgumentParser(description="The house in figures.")
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT])
    parser.add_argument("--word", action="append", default=[], help="Count the files that mention it.")
    arguments = parser.parse_args()
    folders = [folder.resolve() for folder in arguments.folders]
    columns = [numbers(folder, arguments.word) for folder in folders]
    print("| | " + " | ".join(folder.name for folder in folders) + " |")
    print("|---" * (1 + len(folders)) + "|")
    for name in dict.fromkeys(name for column in columns for name in column):
        print(f"| {name} | " + " | ".join(column.get(name, "") for column in columns) + " |")


if __name__ == "__main__":
    main()
