"""`mvar sweep`: a grid on the digits, what it writes, and wrong input in one line."""

import json
import os

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from mvar_models.cli.main import main
from mvar_models.data.digits import Digits
from mvar_models.evaluation.features.network import feature_network
from mvar_models.evaluation.scores import frechet_distance
from mvar_models.images import to_uint8
from mvar_models.pipeline import pipeline_for

from command_cases import mvar
from fork_cases import fork_pair

SWEEP = "sweep --model mvar-digits --reference digits@train --features pixels --per-class 1 --seed 4"


def test_a_grid_on_the_digits(tmp_path):
    result = mvar(f"{SWEEP} --guidance-scale 0,3 -o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "2 presets, 10 images each, by fd of pixels"
    assert len([line for line in lines if line.startswith("guidance_scale ")]) == 2
    summary = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert summary["best"]["figures"]["fd"] == min(cell["figures"]["fd"] for cell in summary["cells"])
    best = {name: value for name, value in summary["best"].items() if name != "figures"}
    assert json.loads((tmp_path / "out" / "preset.json").read_text()) == best
    assert Image.open(tmp_path / "out" / "heat_map.png").width > 300
    # The figure is the distance of these images from the training digits.
    images = pipeline_for("mvar-digits")(list(range(10)), seed=4, output_type="np", **best).images
    source, network = Digits(32), feature_network("pixels")
    ours, real = (
        network(torch.from_numpy(each)).features.numpy()
        for each in (images, to_uint8(source.images(source.train)))
    )
    assert summary["best"]["figures"]["fd"] == pytest.approx(frechet_distance(ours, real), rel=1e-4)
    # Again: nothing is drawn, and the same is found.
    again = mvar(f"{SWEEP} --guidance-scale 0,3 -o", tmp_path / "out")
    assert again.stdout.splitlines()[1:] == lines[1:]


def test_a_schedule_is_another_preset_of_the_same_sweep(tmp_path):
    linear = mvar(f"{SWEEP} --guidance-scale 3 -o", tmp_path)
    constant = mvar(f"{SWEEP} --guidance-scale 3 --guidance-schedule constant -o", tmp_path)
    assert constant.exit_code == 0, constant.output
    first, second = (result.stdout.splitlines()[1] for result in (linear, constant))
    assert second.startswith(f"{first.partition(':')[0]}, guidance_schedule constant: fd ")
    assert first.split()[-1] != second.split()[-1], "other images, another distance"
    assert json.loads((tmp_path / "preset.json").read_text())["guidance_schedule"] == "constant"


def test_another_metric_decides(tmp_path):
    result = mvar(f"{SWEEP} --metric recall --guidance-scale 0,30 -o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2 presets, 10 images each, by recall of pixels")
    summary = json.loads((tmp_path / "out" / "sweep.json").read_text())
    recalls = [cell["figures"]["recall"] for cell in summary["cells"]]
    assert recalls[0] != recalls[1]
    assert summary["best"]["figures"]["recall"] == max(recalls), "more recall is better"


@pytest.mark.parametrize(
    "options, reason",
    [
        ("--guidance-scale 1,x", "must be numbers separated by commas, got '1,x'"),
        ("--top-k 1.5", "must be whole numbers separated by commas, got '1.5'"),
        ("--top-k=-1", "top_k must be a whole number from 0 to 4,194,304, got -1"),
        ("--top-p 2", "top_p must be a number from 0 to 1, got 2.0"),
        ("--guidance-scale inf", "guidance_scale must be a finite number, got inf"),
        ("--features inception-tf", "inception-tf needs pt_inception-2015-12-05-6726825d.pth"),
        ("--reference nothing-of-that-name", "nothing-of-that-name"),
        ("--model nothing-of-that-name", "nothing-of-that-name"),
        ("--metric psnr", "'psnr' is not one of"),
        ("--metric is", "no class probabilities"),
        ("--per-class 0", "0 is not in the range"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, options, reason, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-cache"))
    result = mvar(f"{SWEEP} --guidance-scale 1 {options} -o", tmp_path / "out")
    assert result.exit_code in (1, 2)
    assert reason in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("Error: ")]) == 1
    assert "Traceback" not in result.output


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed with gloo")
@pytest.mark.parametrize("differing", [False, True])
def test_two_processes_share_the_presets_and_compare_their_options(tmp_path, differing):
    """One process writes the heat map, when all are done; none samples with another seed than the others."""
    command = [*SWEEP.split(" --seed")[0].split(), "--guidance-scale", "0,3,5", "-o"]

    def work():
        main([*command, str(tmp_path / "out"), "--seed", os.environ["RANK"] if differing else "4"])

    pair = fork_pair(work, [tmp_path / f"rank-{rank}.txt" for rank in (0, 1)])
    printed = "".join(process.communicate() for process in pair)
    if differing:
        assert all(process.returncode for process in pair)
        assert "all processes of a run must agree, but seed is '0'" in printed
        assert not (tmp_path / "out").exists()
        return
    assert [process.returncode for process in pair] == [0, 0], printed
    assert printed.count("best: ") == 1 and (tmp_path / "out" / "heat_map.png").is_file()
    assert mvar(f"{SWEEP} --guidance-scale 0,3,5 -o", tmp_path / "alone").exit_code == 0
    figures = [
        [cell["figures"]["fd"] for cell in json.loads((tmp_path / name / "sweep.json").read_text())["cells"]]
        for name in ("out", "alone")
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)
