"""The ablation: its arms differ as they should, and a row stands once made."""

import csv

import numpy as np
import pytest
from PIL import Image

from script_cases import load_script

pytest.importorskip("matplotlib")

SIDES = (1, 2, 3, 4, 6, 8)


@pytest.fixture(scope="module")
def script():
    return load_script("ablation")


def test_arms(script):
    assert script.settings_of("var", SIDES, 3) == {"arch": "var"}
    assert script.settings_of("dense", SIDES, 3)["dense_scales"] == 6
    assert script.settings_of("k3", SIDES, 3) == {"arch": "mvar", "kernel_size": 3, "dense_scales": 3}
    assert script.settings_of("k7-adjacent", SIDES, 3)["previous_scales"] == 1
    assert script.settings_of("k7-density", SIDES, 3) == {
        **script.settings_of("k7", SIDES, 3),
        "scale_weights": "density",
    }
    with pytest.raises(SystemExit, match="k7: all 6 scales are dense"):
        script.settings_of("k7", SIDES, 6)


def test_rows_are_kept_and_tabled(script, tmp_path, capsys):
    """Two calls make one table; what stands is not trained again, and other settings are refused."""
    shape = "--steps 1 --batch-size 2 --depth 1 --width 32 --num-heads 1 --dense-scales 3"
    evaluation = "--evaluate-features efficientnet-lite0 --evaluate-images 4 --seeds 0"
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(8):
            # Soft bars, which vae-digits keeps; noise would be refused.
            distance = np.arange(32)[:, None] - rng.integers(8, 24)
            pixels = np.tile((255 * np.exp(-((distance / 3) ** 2))).astype(np.uint8), 32)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    (tmp_path / "images" / "held_out.txt").write_text("a/0.png\na/1.png\nb/0.png\nb/1.png\n")
    folders = f"--data {tmp_path / 'images'} --out {tmp_path / 'out'}"
    call = f"{folders} --vqvae vae-digits {shape} {evaluation}".split()
    script.main([*call, "--arms", "k3"])
    made = tmp_path / "out" / "k3-0" / "row.json"
    before = made.stat().st_mtime_ns
    script.main([*call, "--arms", "var,k3"])
    assert made.stat().st_mtime_ns == before
    rows = list(csv.DictReader((tmp_path / "out" / "ablation.csv").open()))
    assert [row["arm"] for row in rows] == ["var", "k3"]
    pairs = [int(row["attended_pairs"]) for row in rows]
    # VAR: each scale sees itself and all before; k 3 with three dense scales: their squares, then 9 keys.
    tokens = [side**2 for side in SIDES]
    assert pairs[0] == sum(tokens[i] * sum(tokens[: i + 1]) for i in range(6))
    assert pairs[1] == 1 + 16 + 81 + 9 * (16 + 36 + 64)
    assert int(rows[0]["activation_bytes"]) > 0
    assert float(rows[0]["step_ms"]) > 0
    assert "| k3 | 1 |" in (tmp_path / "out" / "ablation.md").read_text()
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"steps differ"):
        script.main(
            [*("2" if part == "1" and call[i - 1] == "--steps" else part for i, part in enumerate(call))]
        )


def test_an_unknown_arm_is_named(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(
            ["--data", "digits", "--vqvae", "v", "--out", str(tmp_path), "--steps", "1", "--arms", "k9"]
        )
    assert "--arms must be of var, dense" in capsys.readouterr().err
