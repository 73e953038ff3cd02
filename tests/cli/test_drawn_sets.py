"""Models, reconstructions and real images in one table."""

import json

from click.testing import CliRunner

from mvar_models.cli.main import main


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
