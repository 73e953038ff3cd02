"""The editing suite measures both rules on digits and writes its table and twelve edits."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.suites import editing


def test_the_suite_writes_a_table_and_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(editing, "MODELS", ("mvar-digits",))
    result = CliRunner().invoke(main, ["--suite", "editing", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "editing.json").read_text())["records"]
    assert {(r["hole"], r["class"], r["rule"]) for r in records} == {
        (hole, kind, rule)
        for hole in ("centre", "bottom half")
        for kind in ("same", "other")
        for rule in ("closed", "released")
    }
    assert all(0 <= r["agreement, pasted"] <= 1 and 10 < r["PSNR of the kept part"] < 60 for r in records)
    # The released rule knows what was in the hole: it draws the digit that was there, whatever is asked for.
    centre = {r["rule"]: r["agreement"] for r in records if (r["hole"], r["class"]) == ("centre", "other")}
    assert centre["released"] < centre["closed"]
    # Two holes, each with originals, masked originals and one row per class and rule.
    assert Image.open(tmp_path / "editing.png").size == (12 * 34 - 2, 12 * 34 - 2)
    assert "| mvar-digits | centre | other | closed |" in (tmp_path / "editing.md").read_text()


def test_a_seam_is_the_step_across_the_edge_of_the_mask():
    mask = editing.holes(8)["centre"]
    image = mask.float().expand(1, 3, 8, 8)
    assert editing.seam(image, mask) == pytest.approx(255)
    assert editing.seam(torch.full((1, 3, 8, 8), 0.4), mask) == 0
    bottom = editing.holes(8)["bottom half"]
    assert bottom.sum() == 32 and editing.seam(image, bottom) < 255
