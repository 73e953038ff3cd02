"""The command line: what it prints, what it writes, and one clear line for what it cannot do."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors import SafetensorError

from mvar_models.cli.main import main
from mvar_models.pipeline import pipeline_for

from run_cases import make_data


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command", ["models", "sample", "export", "train", "finetune", "train-vqvae", "doctor", "demo"]
)
def test_help(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.output


def test_models():
    result = invoke("models", "mvar-d*")
    assert result.exit_code == 0
    assert (
        "mvar-d16" in result.output
        and "CVLUESTC/MVAR/mvar-d16.pth" in result.output
        and "var-d30" not in result.output
    )


def test_sample_writes_pictures_and_how_to_draw_them_again(tmp_path):
    from mvar_models import MVARPipeline

    result = invoke(
        "sample",
        "--model",
        "mvar-digits",
        "--labels",
        "7,three",
        "--n",
        2,
        "--seed",
        5,
        "-o",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [picture["name"] for picture in record["pictures"]] == ["seven", "seven", "three", "three"]
    third = record["pictures"][2]
    again = MVARPipeline.from_pretrained("mvar-digits")(
        [third["label"]], seed=third["seed"], output_type="np"
    )[0]
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / third["file"])), again)
    assert Image.open(tmp_path / "out" / "grid.png").size == (66, 66)


def test_samples_json_draws_the_pictures_again(tmp_path):
    options = [
        "--labels",
        "7,three",
        "--n",
        2,
        "--seed",
        5,
        "--guidance-scale",
        2.5,
        "--top-k",
        40,
        "--more-smooth",
    ]
    assert invoke("sample", "--model", "mvar-digits", *options, "-o", tmp_path / "a").exit_code == 0
    result = invoke("sample", "--again", tmp_path / "a" / "samples.json", "-o", tmp_path / "b")
    assert result.exit_code == 0, result.output
    for path in (tmp_path / "a").glob("0*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(list((tmp_path / "b").glob("0*.png"))) == 4
    record = json.loads((tmp_path / "b" / "samples.json").read_text())
    assert record["options"] == {"guidance_scale": 2.5, "top_k": 40, "top_p": 0.96, "more_smooth": True}
    assert "samples.json" in record["again"] and record["versions"]["torch"]


def test_again_takes_the_batch_size_too(tmp_path):
    """On a GPU the last bits of a picture depend on it."""

    def recorded(folder, *options):
        assert invoke("sample", *options, "-o", tmp_path / folder).exit_code == 0
        return json.loads((tmp_path / folder / "samples.json").read_text())["batch_size"]

    assert recorded("a", "--model", "mvar-digits", "--labels", "7", "--n", 2, "--batch-size", 3) == 3
    assert recorded("b", "--again", tmp_path / "a" / "samples.json") == 3
    assert recorded("c", "--again", tmp_path / "a" / "samples.json", "--batch-size", 1) == 1


def test_a_vqvae_of_another_size_is_told_before_pictures_are_coded(tmp_path):
    data = make_data(tmp_path)
    result = invoke(
        "finetune",
        "--model",
        "var-digits",
        "--data",
        data / "data",
        "--vqvae",
        data / "vae",
        "--out",
        tmp_path / "run",
        "--steps",
        1,
    )
    assert (
        result.exit_code == 1
        and "does not fit var-digits: sides differs" in result.output
        and not (tmp_path / "run" / "tokens").exists()
    )
    result = invoke(
        "tokenize",
        "--data",
        data / "data",
        "--vqvae",
        data / "vae",
        "--out",
        tmp_path / "tokens",
        "--resolution",
        512,
    )
    assert (
        result.exit_code == 1 and "is for 16 px; --resolution is for the released VQVAE" in result.output
    ), result.output
    assert not (tmp_path / "tokens").exists()


def test_a_full_disk_under_a_command_is_one_line(tmp_path, monkeypatch):
    from mvar_models.tokens import shard as token_shards

    def full(*args, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(token_shards, "save_file", full)
    result = invoke("tokenize", "--data", "digits", "--out", tmp_path / "tokens")
    assert (
        result.exit_code == 1
        and "No space left on device" in result.output
        and isinstance(result.exception, SystemExit)
    )


def test_sample_without_labels_takes_every_class_of_a_model_with_few():
    from mvar_models.cli.sample import default_labels

    assert default_labels(3) == [0, 1, 2] and default_labels(10) == list(range(10))
    assert default_labels(1000) == list(range(0, 1000, 100))


def test_sample_npz_and_export(tmp_path):
    arguments = [
        "sample",
        "--model",
        "mvar-digits",
        "--per-class",
        1,
        "--npz",
        tmp_path / "fid.npz",
        "--batch-size",
        5,
    ]
    result = invoke(*arguments)
    assert result.exit_code == 0 and "10 images in" in result.output
    with np.load(tmp_path / "fid.npz") as values:
        assert values["arr_0"].shape == (10, 32, 32, 3)
    assert invoke(*arguments).exit_code == 0, "finished: nothing to do"
    result = invoke(*arguments, "--seed", 1)
    assert result.exit_code == 1 and "made with other settings" in result.output
    result = invoke("export", "--model", "mvar-digits", "--out", tmp_path / "mvar.pth")
    assert result.exit_code == 0 and "parameters in" in result.output
    result = invoke("export", "--model", "vae-digits", "--out", tmp_path / "vae.pth")
    assert result.exit_code == 0 and sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "mvar.pth",
        "vae.pth",
    ]


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["sample"], 2, "--model is missing"),
        (["sample", "--model", "mvar-digits", "--per-class", "2"], 2, "--per-class and --npz go together"),
        (
            ["sample", "--model", "mvar-digits", "--per-class", "2", "--npz", "x.npz", "--labels", "1"],
            2,
            "leave out --labels",
        ),
        (
            ["sample", "--again", "samples.json", "--seed", "3", "--top-k", "2"],
            2,
            "leave out --seed, --top-k",
        ),
        (
            ["sample", "--again", "samples.json"],
            1,
            "samples.json: no such file; --again takes the samples.json that mvar sample wrote",
        ),
        (["models", "dit*"], 2, "no model matches 'dit*'; there are vae-ch160v4096z32, var-d16"),
        (["export", "--model", "mvar-digits", "--out", "nowhere/x.pth"], 1, "nowhere is no folder"),
        (
            ["sample", "--model", "mvar-digits", "--labels", "ten"],
            1,
            "unknown label 'ten': its classes are zero, one",
        ),
        (
            ["sample", "--model", "mvar-digits", "--labels", "thre"],
            1,
            "unknown label 'thre': did you mean 'three'?",
        ),
        (
            ["sample", "--model", "mvar-digits", "--top-k", "-3"],
            1,
            "top_k must be 0 (off) or a positive number of codes, got -3",
        ),
        (["sample", "--model", "nowhere"], 1, "no model of that name in the zoo"),
        (
            ["sample", "--model", "./nowhere"],
            1,
            "./nowhere: no such file or folder, and no model of that name in the zoo",
        ),
        # Said before anything is fetched: the VQVAE of these would have to be downloaded.
        (
            ["train", "--data", "./phots", "--out", "x", "--epochs", "1"],
            1,
            "./phots: nothing of that name; data must be 'digits' or a folder",
        ),
        (
            ["train-vqvae", "--data", "phots", "--out", "x", "--epochs", "1"],
            1,
            "phots: nothing of that name; data must be 'digits' or a folder",
        ),
        (
            ["tokenize", "--data", "./phots", "--out", "x"],
            1,
            "./phots: nothing of that name; data must be 'digits' or a folder",
        ),
        (
            ["train", "--data", ".", "--out", "x", "--epochs", "1", "--device", "tpu"],
            1,
            "unknown device 'tpu'",
        ),
        (["finetune", "--data", "digits", "--out", "x", "--steps", "1"], 2, "--model is missing"),
        (["train", "--data", "digits", "--out", "x"], 2, "give one of --steps and --epochs"),
        (
            [
                "finetune",
                "--model",
                "var-digits",
                "--data",
                "digits",
                "--out",
                "x",
                "--steps",
                "1",
                "--epochs",
                "1",
            ],
            2,
            "give one of",
        ),
        (
            ["train", "--data", "digits", "--out", "x", "--steps", "1", "--ema", "1.5"],
            1,
            "ema must be between 0 and 1, got 1.5",
        ),
        (
            [
                "train",
                "--data",
                "digits",
                "--out",
                "x",
                "--steps",
                "1",
                "--batch-size",
                "2",
                "--accumulate",
                "3",
            ],
            1,
            "cannot be shared by 3",
        ),
        (["train", "--resume", "x", "--lr", "1"], 2, "leave out --lr"),
        (["train", "--resume", "nowhere"], 1, "holds no run"),
        (
            ["train-vqvae", "--data", "digits", "--out", "x", "--steps", "1", "--sides", "1,b"],
            2,
            "whole numbers separated by commas",
        ),
    ],
)
def test_wrong_input_is_one_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == code and message in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir()), "nothing should be written"


def test_a_run_folder_and_a_text_file_are_told_from_checkpoints(tmp_path):
    pipeline_for("mvar-digits").save_pretrained(tmp_path / "run" / "model")
    result = invoke("sample", "--model", tmp_path / "run", "--out", tmp_path / "out")
    assert (
        result.exit_code == 1
        and f"{tmp_path / 'run'} is a run's folder; its model is {tmp_path / 'run' / 'model'}"
        in result.output
    )
    (tmp_path / "notes.pth").write_text("to do\n")
    result = invoke("sample", "--model", tmp_path / "notes.pth", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "notes.pth is a text file, not a checkpoint" in result.output


def test_train_and_resume(tmp_path):
    out = tmp_path / "vae"
    options = [
        "--steps",
        2,
        "--batch-size",
        4,
        "--channels",
        32,
        "--vocab-size",
        16,
        "--z-channels",
        4,
        "--sides",
        "1,2,8",
    ]
    result = invoke("train-vqvae", "--data", "digits", "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert "held-out PSNR" in result.output and (out / "model" / "model.safetensors").is_file()
    again = invoke("train-vqvae", "--resume", out)
    assert again.exit_code == 0, again.output
