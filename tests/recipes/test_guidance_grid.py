"""The grid of guidance scales: each arm at the scale that seed 0 chose; no set is sampled twice."""

import json
import shutil

import pytest

from run_cases import make_data
from script_cases import load_script
from tiny_models import tiny_mvar, tiny_vqvae


@pytest.fixture
def call(tmp_path):
    make_data(tmp_path)
    shutil.copytree(tmp_path / "data" / "bee", tmp_path / "data" / "cat")
    tiny_mvar().save_pretrained(tmp_path / "model")
    tiny_vqvae().save_pretrained(tmp_path / "model" / "vqvae")
    listed = ["--data", tmp_path / "data", "--model", tmp_path / "model", "--features", "pixels"]
    listed += ["--guidance-scale", "0,2", "--prefix", "0,1.5", "--seeds", "2", "--out", tmp_path / "out"]
    return list(map(str, listed))


def test_each_arm_is_tuned_on_seed_0_and_judged_on_others(call, tmp_path):
    script, out = load_script("guidance_grid"), tmp_path / "out"
    script.main(call)
    table = (out / "grid.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in table.splitlines()[4:]}
    assert set(rows) == {"model", "model-embedding-1.5"}
    distances = []
    for name, cells in rows.items():
        tuning = [json.loads((out / name / f"guidance{g}-seed0.json").read_text())["fd"] for g in (0, 2)]
        distances.append(tuning)
        assert float(cells[0]) == pytest.approx(tuning[0], abs=0.06)
        best = (0, 2)[tuning.index(min(tuning))]
        assert float(cells[2]) == best
        judged = [json.loads((out / name / f"guidance{best}-seed{s}.json").read_text())["fd"] for s in (1, 2)]
        assert float(cells[3].split("+-")[0]) == pytest.approx(sum(judged) / 2, abs=0.06)
        assert len(list((out / name).glob("guidance*"))) == 4
    # Prefix guidance changes what is sampled.
    assert distances[0] != distances[1]
    # Figures that are there are read, not computed.
    file = out / "model" / "guidance0-seed0.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fd": 0.125}))
    script.main(call)
    assert "| 0.1 |" in (out / "grid.md").read_text()


def test_a_model_that_refines_itself_gives_its_own_figures(call, tmp_path):
    """A refiner takes the arm's guidance, not its own preset's, and every arm is a folder."""
    script, out = load_script("guidance_grid"), tmp_path / "out"
    script.main([*call, "--prefix", "0", "--refiner", str(tmp_path / "model"), "--refine-from", "1,2"])
    plain = (out / "model" / "guidance2-seed0.json").read_text()
    for first in (1, 2):
        assert (out / f"model-model-{first}" / "guidance2-seed0.json").read_text() == plain
    assert (out / "model" / "guidance0-seed0.json").read_text() != plain


def test_digits_are_tuned_on_a_half_of_the_held_out_ones_and_judged_by_the_other():
    script = load_script("guidance_grid")
    judge, labels, _ = script.judge_of("digits", 32, "", count=225, halves=True)
    source = script.open_images("digits", 32)
    halves = [script.to_uint8(source.images(source.held_out[start::2])) for start in (0, 1)]
    assert len(labels) == len(halves[0]) == len(halves[1])
    for seed, own in ((0, 0), (1, 1), (2, 1)):
        found = [judge(half, seed)["frechet"] for half in halves]
        assert found[own] < 1e-3 < found[1 - own]
