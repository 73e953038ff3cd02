"""The table of cache rules: a row per budget and rule, distances from the whole cache of the same codes."""

import pytest

from mvar_models import VARPipeline

from script_cases import load_script


def test_the_whole_cache_has_distance_0_and_a_smaller_one_does_not():
    script, pipeline = load_script("cache_rules"), VARPipeline.from_pretrained("var-digits")
    rows = list(script.compare(pipeline, [3, 8], [0.999, 0.3], drafters=8))
    assert [row["rule"] for row in rows] == [*script.CACHE_RULES, "attention, 8 drafters"] * 2
    for row in rows[:5]:
        assert row["KL"] == 0 and row["equal codes"] == 1 and row["PSNR"] == pytest.approx(100)
        assert row["KB"] == row["KB of all"] == 66 * 4 * 2 * 128 * 4 / 1e3
    for row in rows[5:]:
        assert row["KL"] > 1e-4 and row["equal codes"] < 1 and row["PSNR"] < 60
        assert row["KB"] <= 20 * 4 * 2 * 128 * 4 / 1e3
    assert len({row["KL"] for row in rows[5:]}) == 5
    assert len({row["KB"] for row in rows[5:9]}) == 1, "the controls are of equal size"
