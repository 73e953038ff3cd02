"""The house in figures: files and lines per room, circles, arrows up, longest function, share of comments.

    python scripts/house_numbers.py [FOLDER ...]

Each folder is a checkout, by default this one; `git archive 9b64a4a | tar x -C FOLDER` makes an earlier one.
The layers are those of tests/test_house.py. Files that are in none of them have no arrows.
"""

import ast
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from test_house import KERNELS, MODELS  # noqa: E402

from house import Module, arrows_up, circles, layer_of, read_modules  # noqa: E402

_PACKAGES = ("mvar_kernels", "mvar_models")


def numbers(root: Path) -> dict[str, str]:
    """Return the figures of a checkout by name."""
    read = read_modules(root)
    for module in read.values():
        if module.only_exports:
            module.imports = set()
    files = [m for m in read.values() if m.name.startswith(_PACKAGES)]
    lines = [line for module in files for line in module.path.read_text().splitlines()]
    length, name = max(functions(module) for module in files)
    comments, code = comments_and_code(files)
    found = circles(read)
    layers = KERNELS + MODELS
    homeless = [m.name for m in files if layer_of(m.name, layers) is None and m.name != "mvar_models"]
    tests = [path for path in (root / "tests").rglob("*.py") if "emulator" not in path.parts]
    return {
        "files in the two packages": str(len(files)),
        "lines in the two packages": f"{len(lines):,}",
        **rooms(root, files),
        "files in tests, without the emulator": str(len(tests)),
        "most in one folder": most_in_one_folder(files),
        "files at the root of mvar_models": str(len(list((root / "mvar_models").glob("*.py")))),
        "circles of files": f"{len(found)}"
        + (f" (of {', '.join(str(len(each)) for each in found)} files)" if found else ""),
        "arrows up": str(len(arrows_up(read, KERNELS)) + len(arrows_up(read, MODELS))),
        "files in no layer": str(len(homeless)),
        "longest function": f"{length} lines, {name}",
        "lines over 110 columns": f"{sum(len(line) > 110 for line in lines)} of {len(lines)}",
        "comment lines per line of code": f"{comments / code:.1%}",
    }


def rooms(root: Path, files: list[Module]) -> dict[str, str]:
    """Return files and lines of each room: a folder below a package, or the files at its root."""
    sizes: dict[str, list[int]] = {}
    for module in files:
        inside = module.path.relative_to(root).parts
        room = inside[0] if len(inside) == 2 else "/".join(inside[:2])
        sizes.setdefault(room, []).append(len(module.path.read_text().splitlines()))
    return {f"- {room}": f"{len(of)} files, {sum(of):,} lines" for room, of in sorted(sizes.items())}


def most_in_one_folder(files: list[Module]) -> str:
    """Return the largest number of files in one folder, and the folder."""
    folders = [module.path.parent for module in files]
    folder = max(set(folders), key=folders.count)
    return f"{folders.count(folder)} in {folder.name}"


def functions(module: Module) -> tuple[int, str]:
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
    folders = [Path(folder) for folder in sys.argv[1:]] or [ROOT]
    columns = [numbers(folder.resolve()) for folder in folders]
    print("| | " + " | ".join(folder.resolve().name for folder in folders) + " |")
    print("|---" * (1 + len(folders)) + "|")
    for name in dict.fromkeys(name for column in columns for name in column):
        print(f"| {name} | " + " | ".join(column.get(name, "") for column in columns) + " |")


if __name__ == "__main__":
    main()
