"""The table of layers: its widths, and what the TF graph calls them."""

from mvar_models.evaluation.features.inception_layout import BLOCKS, FEATURES, STEM, tf_scopes


def width_after(block, width):
    return sum(
        sum(unit.channels for unit in branch.fork) or (branch.units[-1].channels if branch.units else width)
        for branch in BLOCKS[block]
    )


def test_widths_are_those_of_the_paper():
    width, widths = STEM[-1].channels, []
    for block in BLOCKS:
        width = width_after(block, width)
        widths.append(width)
    assert widths == [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, FEATURES]


def test_scopes_of_the_graph():
    """As listed in dumps of the graph: 94 layers, numbered within their tower."""
    scopes = tf_scopes()
    assert len(scopes) == len(set(scopes.values())) == 94
    known = {
        "Conv2d_1a_3x3": "conv",
        "Conv2d_4a_3x3": "conv_4",
        "Mixed_5b.branch1x1": "mixed/conv",
        "Mixed_5b.branch5x5_2": "mixed/tower/conv_1",
        "Mixed_5b.branch3x3dbl_3": "mixed/tower_1/conv_2",
        "Mixed_5d.branch_pool": "mixed_2/tower_2/conv",
        "Mixed_6a.branch3x3": "mixed_3/conv",
        "Mixed_6a.branch3x3dbl_3": "mixed_3/tower/conv_2",
        "Mixed_6d.branch1x1": "mixed_6/conv",
        "Mixed_6e.branch7x7_3": "mixed_7/tower/conv_2",
        "Mixed_6e.branch7x7dbl_5": "mixed_7/tower_1/conv_4",
        "Mixed_7a.branch3x3_1": "mixed_8/tower/conv",
        "Mixed_7a.branch7x7x3_4": "mixed_8/tower_1/conv_3",
        "Mixed_7b.branch3x3_2a": "mixed_9/tower/mixed/conv",
        "Mixed_7c.branch3x3dbl_3b": "mixed_10/tower_1/mixed/conv_1",
        "Mixed_7c.branch_pool": "mixed_10/tower_2/conv",
    }
    assert {layer: scopes[layer] for layer in known} == known
