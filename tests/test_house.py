"""The house: rooms in layers, no circles of files, a small root, and imports that are allowed."""

import ast
import re
import sys
from pathlib import Path

import pytest

from house import Module, arrows_up, circles, layer_of, read_modules
from slow_tests import SLOW, TESTS, is_slow

ROOT = Path(__file__).parents[1]

# From the ground up: a file imports from its own layer and from lower ones, which are listed before it.
KERNELS = (
    ("mvar_kernels.caches",),
    ("mvar_kernels.per_axis",),
    ("mvar_kernels.neighborhood",),
    ("mvar_kernels.pyramid",),
    ("mvar_kernels.backends",),
    ("mvar_kernels.dispatch",),
    ("mvar_kernels.ops",),
    ("mvar_kernels.attention", "mvar_kernels.sampling"),
    ("mvar_kernels.module",),
    ("mvar_kernels", "mvar_kernels.__main__"),
)
MODELS = (
    (
        "mvar_models.config",
        "mvar_models.devices",
        "mvar_models.distributed",
        "mvar_models.environment",
        "mvar_models.files",
        "mvar_models.images",
        "mvar_models.optional",
        "mvar_models.randomness",
        "mvar_models.records",
        "mvar_models.registry",
        "mvar_models.yaml_text",
    ),
    ("mvar_models.checkpoints",),
    ("mvar_models.networks",),
    ("mvar_models.sampling",),
    ("mvar_models.pipeline",),
    ("mvar_models.data",),
    ("mvar_models.tokens",),
    ("mvar_models.evaluation",),
    ("mvar_models.training",),
    ("mvar_models.demo",),
    ("mvar_models.cli",),
    ("mvar_models.__main__",),
)
# What a file may import at its top. Anything else goes through mvar_models.optional, or into the function
# that needs it.
OUTSIDE = {
    "mvar_kernels": {"torch", "triton", "numpy"},
    "mvar_models": {"torch", "numpy", "safetensors", "huggingface_hub", "PIL", "click", "tqdm", "yaml"},
}
OPTIONAL = {
    "mvar_models.demo": {"matplotlib", "sklearn"},
}
MOST_AT_THE_ROOT = 12

# What is still wrong. An entry that is right by now fails, so the sets can only shrink.
STILL_UP: set[tuple[str, str]] = set()
STILL_CIRCLES: set[tuple[str, ...]] = set()
STILL_OUTSIDE: set[tuple[str, str]] = set()


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    """All files, except that a package's __init__ which only re-exports counts as importing nothing."""
    read = read_modules(ROOT)
    for module in read.values():
        if module.only_exports:
            module.imports = set()
    return read


def test_no_circle_of_files(modules):
    assert set(circles(modules)) == STILL_CIRCLES


@pytest.mark.parametrize("layers", [KERNELS, MODELS], ids=["mvar_kernels", "mvar_models"])
def test_arrows_point_down(modules, layers):
    package = layers[0][0].partition(".")[0]
    known = {arrow for arrow in STILL_UP if arrow[0].startswith(package)}
    assert arrows_up(modules, layers) == known


def test_the_ground_floor_imports_nothing_above_it(modules):
    """Its files may import each other; layer_of tells them from every other room."""
    for module in modules.values():
        if layer_of(module.name, MODELS) == 0:
            above = {name for name in module.imports if name.startswith("mvar_models")}
            assert all(layer_of(name, MODELS) == 0 for name in above), (module.name, above)


def test_every_file_has_a_layer(modules):
    for name, module in modules.items():
        if not name.startswith("benchmarks") and name != "mvar_models":
            assert layer_of(name, KERNELS + MODELS) is not None, f"{module.path} is in no room of this test"


def test_every_room_exists(modules):
    for room in (room for rooms in KERNELS + MODELS for room in rooms):
        assert room in modules, f"{room} is listed and does not exist"


def test_kernels_know_no_models(modules):
    for name, module in modules.items():
        if name.startswith("mvar_kernels"):
            assert not [target for target in module.imports if not target.startswith("mvar_kernels")], name
        if name.startswith("mvar_models"):
            assert not [target for target in module.imports if target.startswith("benchmarks")], name


def test_the_root_is_small():
    assert len(list((ROOT / "mvar_models").glob("*.py"))) <= MOST_AT_THE_ROOT


def test_every_slow_test_exists():
    for entry in SLOW:
        file, _, test = entry.partition("::")
        assert file and (TESTS / file).exists(), f"{entry} is listed in slow_tests.py and does not exist"
        assert not test or f"def {test}(" in (TESTS / file).read_text(), entry


def test_slow_tests_are_told_by_folder_file_and_name():
    assert is_slow(TESTS / "triton" / "test_windows.py", "test_any")
    assert is_slow(TESTS / "benchmarks" / "test_aot.py", "test_any")
    assert not is_slow(TESTS / "kernels" / "test_pyramid.py", "test_any")
    assert not is_slow(TESTS / "triton_test.py", "test_any")


def test_packages_import_what_they_may(modules):
    wrong = set()
    for name, module in modules.items():
        package = name.partition(".")[0]
        if package not in OUTSIDE:
            continue
        allowed = {*sys.stdlib_module_names, "mvar_kernels", "mvar_models", *OUTSIDE[package]}
        for room, names in OPTIONAL.items():
            if name == room or name.startswith(room + "."):
                allowed |= names
        wrong |= {(name, outside) for outside in module.outside - allowed}
    assert wrong == STILL_OUTSIDE


def test_triton_is_imported_by_its_own_backend_alone(modules):
    for name, module in modules.items():
        if "triton" in module.outside and not name.startswith("benchmarks"):
            assert name.startswith("mvar_kernels.backends.triton"), name


def write(folder: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_modules(folder)


def test_the_reader_sees_every_kind_of_import(tmp_path):
    read = write(
        tmp_path,
        {
            "mvar_models/__init__.py": "",
            "mvar_models/a.py": "import mvar_models.b",
            "mvar_models/b.py": "def late():\n    from mvar_models import c",
            "mvar_models/c.py": "if TYPE_CHECKING:\n    from mvar_models.d import D",
            "mvar_models/d.py": "from .a import x\ntry:\n    import numpy\nfinally:\n    import torch",
        },
    )
    assert circles(read) == [("mvar_models.a", "mvar_models.b", "mvar_models.c", "mvar_models.d")]
    assert read["mvar_models.d"].outside == {"numpy", "torch"}
    layers = (("mvar_models.a",), ("mvar_models.b", "mvar_models.c"), ("mvar_models.d",))
    assert arrows_up(read, layers) == {
        ("mvar_models.a", "mvar_models.b"),
        ("mvar_models.c", "mvar_models.d"),
    }


def test_a_package_that_defines_something_is_no_mere_sign(tmp_path):
    read = write(
        tmp_path,
        {"mvar_models/__init__.py": "from mvar_models.x import y", "mvar_models/x.py": "def y():\n    pass"},
    )
    assert read["mvar_models"].only_exports
    read = write(tmp_path, {"mvar_models/__init__.py": "def y():\n    from mvar_models import x"})
    assert not read["mvar_models"].only_exports
    assert read["mvar_models"].imports == {"mvar_models.x"}


def test_every_room_is_tested():
    """The tests name something that a module defines, or only modules of its own room use it.

    Commands are found by name: tests/docs/test_commands.py walks all of them.
    """
    tests = "".join(
        path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py") if path != Path(__file__)
    )
    words = set(re.findall(r"\w+", tests))
    library = {name: each for name, each in read_modules(ROOT).items() if not name.startswith("benchmarks")}
    untested = set()
    for name, module in library.items():
        room = name.rpartition(".")[0]
        users = {user for user, other in library.items() if name in other.imports}
        inner = users and all(user == room or user.rpartition(".")[0] == room for user in users)
        defined = {node.name for node in module.tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if room != "mvar_models.cli" and not inner and defined and not defined & words:
            untested.add(name)
    assert not untested
