"""The layers of Inception v3 (Szegedy et al., arXiv 1512.00567) as a table, for the network and the TF graph.

It is the network of the graph `inception-2015-12-05`, which differs from torchvision's Inception in three
places: 1,008 classes, average pools that leave the padding out, and a max pool in the last block.
Layer names are those of PyTorch state dicts; `tf_scopes` says what the graph calls them.
"""

from __future__ import annotations

from typing import NamedTuple

CLASSES = 1008
FEATURES = 2048
# 7 channels of a 17 x 17 map, which sFID takes.
SPATIAL = 7 * 17 * 17
# Batch norm's epsilon in every layer.
EPSILON = 0.001


class Unit(NamedTuple):
    """A convolution without bias, batch norm and ReLU.

    Attributes:
        name: Name of the layer.
        channels: Output channels.
        kernel: Height and width.
        stride: 1, or 2 without padding.
        padded: Whether the output keeps the input's size.
    """

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side, per axis."""
        return (self.kernel[0] // 2, self.kernel[1] // 2) if self.padded and self.stride == 1 else (0, 0)


class Branch(NamedTuple):
    """One path through a block; the outputs of all paths lie one after the other.

    Attributes:
        tower: Scope inside the block's scope of the TF graph; "" is the block's own.
        units: Layers, in order.
        fork: Layers that all read the last of `units`.
        pool: What comes first: "", "average" or "max" (3 x 3 at stride 1), "halve" (max, 3 x 3 at stride 2).
    """

    tower: str
    units: tuple[Unit, ...] = ()
    fork: tuple[Unit, ...] = ()
    pool: str = ""


_3x3, _5x5, _1x3, _3x1, _1x7, _7x1 = (3, 3), (5, 5), (1, 3), (3, 1), (1, 7), (7, 1)

# The layers before the blocks; a max pool that halves follows those in HALVED_AFTER.
STEM = (
    Unit("Conv2d_1a_3x3", 32, _3x3, stride=2),
    Unit("Conv2d_2a_3x3", 32, _3x3, padded=False),
    Unit("Conv2d_2b_3x3", 64, _3x3),
    Unit("Conv2d_3b_1x1", 80),
    Unit("Conv2d_4a_3x3", 192, _3x3, padded=False),
)
HALVED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")


def _grid_35(pooled: int) -> tuple[Branch, ...]:
    triple = (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, _3x3), Unit("branch3x3dbl_3", 96, _3x3))
    return (
        Branch("", (Unit("branch1x1", 64),)),
        Branch("tower", (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, _5x5))),
        Branch("tower_1", triple),
        Branch("tower_2", (Unit("branch_pool", pooled),), pool="average"),
    )


def _grid_17(narrow: int) -> tuple[Branch, ...]:
    single = (("1", narrow, (1, 1)), ("2", narrow, _1x7), ("3", 192, _7x1))
    double = (
        ("1", narrow, (1, 1)),
        ("2", narrow, _7x1),
        ("3", narrow, _1x7),
        ("4", narrow, _7x1),
        ("5", 192, _1x7),
    )
    return (
        Branch("", (Unit("branch1x1", 192),)),
        Branch("tower", tuple(Unit(f"branch7x7_{i}", width, kernel) for i, width, kernel in single)),
        Branch("tower_1", tuple(Unit(f"branch7x7dbl_{i}", width, kernel) for i, width, kernel in double)),
        Branch("tower_2", (Unit("branch_pool", 192),), pool="average"),
    )


def _grid_8(pool: str) -> tuple[Branch, ...]:
    return (
        Branch("", (Unit("branch1x1", 320),)),
        Branch(
            "tower",
            (Unit("branch3x3_1", 384),),
            fork=(Unit("branch3x3_2a", 384, _1x3), Unit("branch3x3_2b", 384, _3x1)),
        ),
        Branch(
            "tower_1",
            (Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, _3x3)),
            fork=(Unit("branch3x3dbl_3a", 384, _1x3), Unit("branch3x3dbl_3b", 384, _3x1)),
        ),
        Branch("tower_2", (Unit("branch_pool", 192),), pool=pool),
    )


_TO_17 = (
    Branch("", (Unit("branch3x3", 384, _3x3, stride=2),)),
    Branch(
        "tower",
        (
            Unit("branch3x3dbl_1", 64),
            Unit("branch3x3dbl_2", 96, _3x3),
            Unit("branch3x3dbl_3", 96, _3x3, stride=2),
        ),
    ),
    Branch("", pool="halve"),
)
_TO_8 = (
    Branch("tower", (Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, _3x3, stride=2))),
    Branch(
        "tower_1",
        (
            Unit("branch7x7x3_1", 192),
            Unit("branch7x7x3_2", 192, _1x7),
            Unit("branch7x7x3_3", 192, _7x1),
            Unit("branch7x7x3_4", 192, _3x3, stride=2),
        ),
    ),
    Branch("", pool="halve"),
)

# Blocks in order; the TF graph calls them mixed, mixed_1, ... mixed_10.
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _grid_35(32),
    "Mixed_5c": _grid_35(64),
    "Mixed_5d": _grid_35(64),
    "Mixed_6a": _TO_17,
    "Mixed_6b": _grid_17(128),
    "Mixed_6c": _grid_17(160),
    "Mixed_6d": _grid_17(160),
    "Mixed_6e": _grid_17(192),
    "Mixed_7a": _TO_8,
    "Mixed_7b": _grid_8("average"),
    "Mixed_7c": _grid_8("max"),
}


def tf_scopes() -> dict[str, str]:
    """Return the scope of each layer in the TF graph: "Mixed_6d.branch1x1" is "mixed_6/conv"."""
    found = {unit.name: scope for unit, scope in zip(STEM, _numbered("conv", len(STEM)))}
    for block, scope in zip(BLOCKS, _numbered("mixed", len(BLOCKS))):
        for branch in BLOCKS[block]:
            inside = f"{scope}/{branch.tower}" if branch.tower else scope
            for unit, name in zip(branch.units, _numbered("conv", len(branch.units))):
                found[f"{block}.{unit.name}"] = f"{inside}/{name}"
            for unit, name in zip(branch.fork, _numbered("conv", len(branch.fork))):
                found[f"{block}.{unit.name}"] = f"{inside}/mixed/{name}"
    return found


def _numbered(name: str, count: int) -> list[str]:
    """TensorFlow's names for things of one name: conv, conv_1, conv_2."""
    return [name if index == 0 else f"{name}_{index}" for index in range(count)]
