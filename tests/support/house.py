"""Who imports whom, read from the source: for tests/test_house.py and scripts/house_numbers.py.

Imports inside functions and under TYPE_CHECKING count like any other.
"""

import ast
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("mvar_kernels", "mvar_models", "benchmarks")


@dataclass
class Module:
    """A source file.

    Attributes:
        name: Dotted name, as in "mvar_models.cli.main".
        path: The file.
        tree: Its syntax tree.
        imports: Modules of PACKAGES that it imports.
        outside: Top-level names of other packages that it imports when it is imported itself.
    """

    name: str
    path: Path
    tree: ast.Module
    imports: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)

    @property
    def only_exports(self) -> bool:
        """Whether this is a package's __init__ that defines no function or class of its own.

        Such a file is a sign at the door: it re-exports what lies in the rooms behind it, and whoever needs
        one of the rooms names the room.
        """
        defined = (ast.FunctionDef, ast.ClassDef)
        own = [node for node in self.tree.body if isinstance(node, defined)]
        return self.path.name == "__init__.py" and not own


def read_modules(root: Path) -> dict[str, Module]:
    """Read every file of PACKAGES under `root`, by dotted name."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    for module in modules.values():
        for node in ast.walk(module.tree):
            module.imports |= _targets(node, module, modules)
        module.imports -= {module.name}
        module.outside = _outside(module.tree)
    return modules


def _targets(node: ast.AST, module: Module, modules: dict[str, Module]) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in modules}
    if not isinstance(node, ast.ImportFrom):
        return set()
    origin = node.module or ""
    if node.level:
        is_package = module.path.name == "__init__.py"
        parts = module.name.split(".")
        base = parts[: len(parts) - node.level + is_package]
        origin = ".".join([*base, *([node.module] if node.module else [])])
    if origin not in modules:
        return set()
    submodules = {f"{origin}.{alias.name}" for alias in node.names} & set(modules)
    # `from package import file` imports the file; other names come from the package's __init__.
    named = len(submodules) < len(node.names)
    return submodules | ({origin} if named else set())


def _outside(tree: ast.Module) -> set[str]:
    """Packages imported at module level, also within `if` and `try`, except under TYPE_CHECKING."""
    names: set[str] = set()
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.If):
            checked = "TYPE_CHECKING" in ast.unparse(node.test) and "not" not in ast.unparse(node.test)
            waiting += node.orelse if checked else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            waiting += [*node.body, *node.orelse, *node.finalbody]
            waiting += [statement for handler in node.handlers for statement in handler.body]
        elif isinstance(node, ast.With | ast.ClassDef):
            waiting += node.body
    return names


def circles(modules: dict[str, Module]) -> list[tuple[str, ...]]:
    """Return the groups of files that import each other, directly or through others (Tarjan's components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(modules[name].imports):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(tuple(sorted(group)))

    for name in sorted(modules):
        if name not in index:
            visit(name)
    return sorted(found)


def layer_of(name: str, layers: tuple[tuple[str, ...], ...]) -> int | None:
    """Return the height of the layer whose room holds the module: the longest prefix that is listed."""
    best: tuple[int, int] | None = None
    for height, rooms in enumerate(layers):
        for room in rooms:
            if (name == room or name.startswith(room + ".")) and (best is None or len(room) > best[0]):
                best = (len(room), height)
    return None if best is None else best[1]


def arrows_up(modules: dict[str, Module], layers: tuple[tuple[str, ...], ...]) -> set[tuple[str, str]]:
    """Return the imports that point from a layer to a higher one."""
    up = set()
    for module in modules.values():
        here = layer_of(module.name, layers)
        for target in module.imports:
            there = layer_of(target, layers)
            if here is not None and there is not None and there > here:
                up.add((module.name, target))
    return up
