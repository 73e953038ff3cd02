"""The heat map: a panel per top-k, and the best preset in a red frame."""

import sys

import numpy as np
import pytest
from PIL import Image

from mvar_models.evaluation.heat_map import _three_digits, draw_heat_map, pyplot
from mvar_models.evaluation.sweep import Cell, preset_grid


def cells_of(presets, metric, best):
    """Figures that are 1 at the preset of that index, and worse elsewhere."""
    worse = 2.0 if metric == "fd" else 0.5
    return [Cell(preset, {metric: 1.0 if i == best else worse}) for i, preset in enumerate(presets)]


def frame_of(file):
    """The middle of what is red, as shares of width and height."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 230) & (pixels[..., 1:] < 30).all(-1))
    assert len(rows) > 50
    return columns.mean() / pixels.shape[1], rows.mean() / pixels.shape[0]


@pytest.mark.parametrize("metric", ["fd", "recall"])
def test_the_frame_is_at_the_best(tmp_path, metric):
    """Panels of top_k from left to right, guidance from left to right inside, top_p downwards."""
    presets = preset_grid([0.0, 1.0, 2.0], [20, 50], [0.5, 0.9])
    places = []
    for best in (0, 5, 7):
        draw_heat_map(tmp_path / "map.png", cells_of(presets, metric, best), metric, "a title")
        places.append((presets[best], *frame_of(tmp_path / "map.png")))
    (first, x1, y1), (second, x2, y2), (third, x3, y3) = places
    assert (first.top_k, first.guidance_scale, first.top_p) == (20, 0.0, 0.5)
    assert (second.top_k, second.guidance_scale, second.top_p) == (20, 1.0, 0.9)
    assert (third.top_k, third.guidance_scale, third.top_p) == (50, 1.0, 0.9)
    assert x1 < x2 - 0.05 < x3 - 0.2
    assert y1 < y2 - 0.05
    assert abs(y2 - y3) < 0.01


def test_a_filter_that_is_off_comes_last(tmp_path):
    """Off is the loosest value, not the smallest."""
    presets = preset_grid([0.0], [0, 50], [0.0, 0.9])
    places = {}
    for best, preset in enumerate(presets):
        draw_heat_map(tmp_path / "map.png", cells_of(presets, "fd", best), "fd", "a title")
        places[preset.top_k, preset.top_p] = frame_of(tmp_path / "map.png")
    assert places[50, 0.9][0] < places[0, 0.9][0] - 0.2
    assert places[50, 0.9][1] < places[50, 0.0][1] - 0.2


def test_cells_show_three_digits():
    assert [_three_digits(value) for value in (14.95, 100.0, 0.5, 206400.0)] == [
        "14.9",
        "100",
        "0.500",
        "2.06e+05",
    ]


def test_one_preset_and_part_of_a_grid(tmp_path):
    presets = preset_grid([0.0, 1.0], [0], [0.5, 0.9])
    for count in (1, 3):
        draw_heat_map(tmp_path / "map.png", cells_of(presets[:count], "fd", 0), "fd", "a title")
        assert frame_of(tmp_path / "map.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib is needed here .*\[demo\]"):
        pyplot()
