"""A sweep keeps finished presets and finds the best; its heat map frames it."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.distributed import Processes
from mvar_models.evaluation.sweep import (
    Cell,
    _three_digits,
    best_cell,
    draw_heat_map,
    preset_grid,
    pyplot,
    sweep,
    write_summary,
)
from mvar_models.sampling.settings import SamplingSettings, read_preset

from progress_cases import recorded

PLAIN = SamplingSettings(1.0, 0, 0.0)
SETTINGS = {"model": "mvar-digits", "metric": "fd"}
GRID = preset_grid([0.0, 2.0], [0, 5], [0.9])


@pytest.fixture
def pipeline():
    """Two classes, and images whose pixels are the seed: drawing is not what most tests here are about."""

    def draw(labels, *, seed, output_type, batch_size=32, **settings):
        return SimpleNamespace(images=np.stack([np.full((4, 4, 3), each, dtype=np.uint8) for each in seed]))

    config = SimpleNamespace(num_classes=2, class_names=None, to_dict=dict, **PLAIN.to_dict())
    network = {"state_dict": dict, "named_modules": list}
    draw.model = SimpleNamespace(config=config, **network)
    draw.vqvae = SimpleNamespace(config=SimpleNamespace(resolution=4, to_dict=dict), **network)
    return draw


class Judge:
    """Returns the number of its call, and keeps the images; the call numbered `fails_at` fails."""

    def __init__(self, fails_at=None):
        self.seen, self.fails_at = [], fails_at

    def __call__(self, file):
        if len(self.seen) == self.fails_at:
            raise KeyboardInterrupt
        with np.load(file) as arrays:
            self.seen.append(arrays["arr_0"])
        return {"fd": float(len(self.seen)), "recall": 0.5}


def run(pipeline, judge, folder, presets=GRID, **options):
    options = {"settings": SETTINGS, "per_class": 1, "batch_size": 5, **options}
    return sweep(pipeline, judge, presets, folder, **options)


def test_the_grid_is_every_combination_once():
    assert GRID == [SamplingSettings(guidance, top_k, 0.9) for guidance in (0.0, 2.0) for top_k in (0, 5)]
    assert preset_grid([1.0, 1.0], [0], [0.0]) == [SamplingSettings(1.0, 0, 0.0)]
    with pytest.raises(ValueError, match="top_k needs at least one value"):
        preset_grid([1.0], [], [0.0])
    with pytest.raises(ValueError, match=r"top_p must be .* from 0 to 1, got 2"):
        preset_grid([1.0], [0], [2])


def test_the_best_is_low_or_high_as_the_metric_says():
    def cells(name, *values):
        return [Cell(SamplingSettings(float(i), 0, 0.0), {name: value}) for i, value in enumerate(values)]

    assert best_cell(cells("fd", 3.0, 1.0, math.nan, 1.0), "fd").preset.guidance_scale == 1
    assert best_cell(cells("near_copies", 0.3, 0.1), "near_copies").preset.guidance_scale == 1
    assert best_cell(cells("recall", 0.3, math.nan, 0.6, 0.6), "recall").preset.guidance_scale == 2
    with pytest.raises(ValueError, match="fd is not finite for any of the 2 presets"):
        best_cell(cells("fd", math.nan, math.inf), "fd")


def test_images_are_those_of_the_pipeline_with_that_preset(tmp_path):
    pipeline = MVARPipeline.from_pretrained("mvar-digits")
    judge, seen = Judge(), []
    with recorded() as meters:
        cells = run(pipeline, judge, tmp_path / "out", seed=7, on_cell=seen.append)
    assert [cell.preset for cell in cells] == GRID
    assert [cell.figures for cell in cells] == [{"fd": i + 1.0, "recall": 0.5} for i in range(4)]
    assert seen == cells
    for preset, images in zip(GRID, judge.seen):
        expected = pipeline(list(range(10)), seed=7, output_type="np", **preset.to_dict()).images
        assert np.array_equal(images, expected), preset
    assert [(meter.unit, meter.done, meter.total) for meter in meters][:2] == [
        ("preset", 4, 4),
        ("image", pytest.approx(10), 10),
    ]
    # A small file per preset remains, and no images.
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(names) == 5 and all(name.endswith(".json") for name in names)


def test_a_stopped_sweep_continues_and_a_larger_one_draws_what_is_new(pipeline, tmp_path):
    first = Judge(fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, first, tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("guidance*.json")}
    assert len(kept) == 2
    second = Judge()
    cells = run(pipeline, second, tmp_path)
    assert len(second.seen) == 2
    assert [cell.figures["fd"] for cell in cells] == [1, 2, 1, 2]
    assert all((tmp_path / name).read_bytes() == content for name, content in kept.items())
    third = Judge()
    larger = preset_grid([0.0, 1.0, 2.0], [0, 5], [0.9])
    assert len(run(pipeline, third, tmp_path, larger)) == 6
    assert len(third.seen) == 2
    assert not list(tmp_path.glob("*.npz*"))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"per_class": 2}, {"settings": {**SETTINGS, "metric": "kid"}}]
)
def test_another_sweep_in_the_folder_is_refused(pipeline, tmp_path, change):
    run(pipeline, Judge(), tmp_path, GRID[:1])
    name = next(iter(change)) if "settings" not in change else "metric"
    with pytest.raises(ValueError, match=rf"holds a sweep made with other settings \({name} differ\)"):
        run(pipeline, Judge(), tmp_path, GRID[:1], **change)


def test_processes_share_the_presets(pipeline, tmp_path):
    first, second = Judge(), Judge()
    assert len(run(pipeline, first, tmp_path, GRID[:3], processes=Processes(0, 2))) == 2
    cells = run(pipeline, second, tmp_path, GRID[:3], processes=Processes(1, 2))
    assert [cell.preset for cell in cells] == GRID[:3]
    assert (len(first.seen), len(second.seen)) == (2, 1)


def test_no_presets_are_refused(pipeline, tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        run(pipeline, Judge(), tmp_path, [])


@pytest.mark.parametrize(
    "text, said",
    [
        ("[]", "must be an object"),
        ("{}", "lacks the entry figures"),
        ('{"figures": 3}', "figures must be an object"),
        ('{"figures": {"fd": "low"}}', r"figures\.fd must be a number, got 'low'"),
        ('{"figures": {"kid": 1}}', "has no fd"),
    ],
)
def test_a_damaged_file_of_a_preset_is_named(pipeline, tmp_path, text, said):
    run(pipeline, Judge(), tmp_path, GRID[:1])
    (record,) = tmp_path.glob("guidance*.json")
    record.write_text(text)
    with pytest.raises(ValueError, match=said):
        best_cell(run(pipeline, Judge(), tmp_path, GRID[:1]), "fd")


def test_the_summary_names_the_best(pipeline, tmp_path):
    cells = run(pipeline, Judge(), tmp_path, GRID[:2])
    assert write_summary(tmp_path, cells, "fd") == cells[0]
    assert read_preset(tmp_path / "preset.json") == GRID[0]
    summary = json.loads((tmp_path / "sweep.json").read_text())
    assert summary["best"] == {**GRID[0].to_dict(), "figures": cells[0].figures}
    assert [cell["figures"]["fd"] for cell in summary["cells"]] == [1, 2]
    assert (summary["metric"], summary["better"]) == ("fd", "lower")
    assert summary["settings"]["model"] == "mvar-digits"
    assert summary["versions"]["torch"]


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
