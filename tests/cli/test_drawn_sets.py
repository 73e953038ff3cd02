"""Models, reconstructions and real images in one table."""

import json
import shutil

from click.testing import CliRunner

from mvar_models import MVARPipeline, VARPipeline
from mvar_models.cli.main import main

from command_cases import mvar


def test_digits_in_one_table(tmp_path):
    command = "evaluate digits@held-out --reference digits@train --features pixels --reconstruct vae-digits"
    command += " --model mvar-digits --per-class 1 --held-out digits --metrics fd,near_copies"
    options = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json")]
    done = CliRunner().invoke(main, [*command.split(), *options])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "figures.json").read_text())["sets"]
    names = [each["sets"]["drawn"]["name"] for each in found]
    assert names == ["digits@held-out", "digits@held-out through vae-digits", "mvar-digits"]
    assert found[0]["fd"] < found[2]["fd"]
    assert 1 < found[2]["likelihood"]["nats_per_code"] < 6
    assert (tmp_path / "out" / "mvar-digits.npz").is_file()


EVALUATE = "evaluate --reference digits@held-out --features pixels --metrics fd,near_copies --per-class 1"


def test_models_in_folders_of_one_name_are_drawn_and_shown_apart(tmp_path):
    """A run's model lies in a folder called model."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    VARPipeline.from_pretrained("var-digits").save_pretrained(runs / "a" / "model")
    MVARPipeline.from_pretrained("mvar-digits").save_pretrained(runs / "b" / "model")
    result = mvar(f"{EVALUATE} --model {runs}/a/model --model {runs}/b/model --out", out)
    assert result.exit_code == 0, result.output
    figures = [line.split()[2] for line in result.output.splitlines() if line.startswith(str(runs))]
    assert len(set(figures)) == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "a-model", "a-model.npz", "b-model", "b-model.npz",
    ]  # fmt: skip
    sheets = [(out / name / "neighbours.png").read_bytes() for name in ("a-model", "b-model")]
    assert sheets[0] != sheets[1]


def test_pictures_of_two_sets_of_one_name_lie_apart(tmp_path):
    source, out = tmp_path / "first" / "photos", tmp_path / "out"
    assert mvar("sample --model mvar-digits --n 2 -o", source).exit_code == 0
    shutil.copytree(source, tmp_path / "second" / "photos")
    command = "evaluate --reference digits@train --features pixels --metrics near_copies --out"
    result = mvar(command, out, source, tmp_path / "second" / "photos")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["first-photos", "second-photos"]


def test_a_place_that_is_not_there_is_known_before_anything_is_drawn(tmp_path):
    for wrong in ("--model ./absent", "./absent", "--reference ./absent"):
        result = mvar(f"{EVALUATE} --model mvar-digits {wrong} --out", tmp_path / "out")
        assert result.exit_code == 1 and "absent" in result.output
        assert not (tmp_path / "out").exists()
