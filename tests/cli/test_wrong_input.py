"""Wrong options and damaged files end in one line."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from command_cases import mvar
from feature_cases import random_images


@pytest.mark.parametrize(
    "text, code, message",
    [
        ("sample", 2, "--model is missing"),
        ("sample --model mvar-digits --per-class 2", 2, "--per-class and --npz go together"),
        ("sample --model mvar-digits --per-class 2 --npz x.npz --labels 1", 2, "leave out --labels"),
        ("sample --again samples.json --seed 3 --top-k 2", 2, "leave out --seed, --top-k"),
        (
            "sample --again samples.json",
            1,
            "samples.json: no such file; --again takes the samples.json that mvar sample wrote",
        ),
        ("sample --model mvar-digits --sampler best", 2, "'best' is not one of 'ancestral', 'smooth'"),
        ("edit --image x.png", 2, "give one of --mask-image, --padding and --from-scale"),
        ("edit --image x.png --mask-image m.png --from-scale 1", 2, "give one of --mask-image, --padding"),
        ("edit --image x.png --from-scale 1 --no-paste --strength 1", 2, "leave them out"),
        ("edit --image x.png --from-scale 1", 2, "--model is missing"),
        ("edit --image x.png --padding 1,2 --model mvar-digits", 2, "left,top,right,bottom, got '1,2'"),
        ("edit --image x.png --from-scale 1 --model mvar-digits -o x.tiff", 2, "must end in .png or .jpg"),
        ("edit --image x.png --from-scale 1 --model mvar-digits -o no/x.png", 1, "no is no folder"),
        ("edit --image x.png --from-scale 1 --model mvar-digits", 1, "x.png cannot be opened"),
        ("models 'dit*'", 2, "no model matches 'dit*'; there are vae-ch160v4096z32, var-d16"),
        ("export --model mvar-digits --out x.safetensors", 2, "must end in .pth or .pt, got x.safetensors"),
        ("sample --model mvar-digits --per-class 1 --npz x.png", 2, "must end in .npz, got x.png"),
        ("classify digits --model mvar-digits --csv x.json", 2, "must end in .csv, got x.json"),
        ("evaluate --model mvar-digits --per-class 1 --reference digits", 2, "--out, which is missing"),
        ("export --model mvar-digits --out nowhere/x.pth", 1, "nowhere is no folder"),
        ("sample --model mvar-digits --labels ten", 1, "unknown label 'ten': its classes are zero, one"),
        ("sample --model mvar-digits --labels thee", 1, "unknown label 'thee': did you mean 'three'?"),
        ("sample --model mvar-emoji --labels people", 1, "'people' fits classes 5 (fluent-people-body), 14"),
        ("sampel", 2, "no command 'sampel'; did you mean sample?"),
        (
            "sample --model mvar-digits --top-k -3",
            1,
            "top_k must be a whole number from 0 to 4,194,304, got -3",
        ),
        ("sample --model nowhere", 1, "no model of that name in the zoo"),
        (
            "sample --model ./nowhere",
            1,
            "./nowhere: no such file or folder, and no model of that name in the zoo",
        ),
        (
            "train --data ./phots --out x --epochs 1",
            1,
            "./phots: nothing of that name; data must be 'digits' or a folder",
        ),
        (
            "train-vqvae --data phots --out x --epochs 1",
            1,
            "phots: nothing of that name; data must be 'digits' or a folder",
        ),
        (
            "tokenize --data ./phots --out x",
            1,
            "./phots: nothing of that name; data must be 'digits' or a folder",
        ),
        ("train --data . --out x --epochs 1 --device tpu", 1, "unknown device 'tpu'"),
        ("finetune --data digits --out x --steps 1", 2, "--model is missing"),
        ("train --data digits --out x", 2, "give one of --steps and --epochs"),
        ("finetune --model var-digits --data digits --out x --steps 1 --epochs 1", 2, "give one of"),
        (
            "train --data digits --out x --steps 1 --ema 1.5",
            1,
            "ema must be a number of at least 0 and below 1, got 1.5",
        ),
        ("train --data digits --out x --steps 1 --batch-size 2 --accumulate 3", 1, "cannot be shared by 3"),
        ("train --resume x --lr 1", 2, "leave out --lr"),
        ("train --resume nowhere", 1, "holds no run"),
        ("train-vqvae --data digits --out x --steps 1 --sides 1,b", 2, "whole numbers separated by commas"),
        ("train-vqvae --model vae-digits --data digits --out x --steps 1 --sides 1,2", 2, "--sides"),
    ],
)
def test_wrong_input_is_one_line(text, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = mvar(text)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir()), "nothing should be written"


IMAGES = random_images(12, side=8)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def statistics(dimension=192, **changes):
    """Statistics of 8 x 8 images by `pixels`, or what is left of them."""
    whole = {"network": "pixels", "mu": np.zeros(dimension), "sigma": np.eye(dimension), "count": 300}
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


ARRAYS = {
    "good": {"arr_0": IMAGES},
    "other": {"arr_0": random_images(12, side=8, seed=1)},
    "labelled": {"arr_0": IMAGES, "arr_1": np.arange(12) % 2},
    "one": {"arr_0": IMAGES[:1]},
    "none": {"arr_0": IMAGES[:0]},
    "five": {"arr_0": IMAGES[:5]},
    "floats": {"arr_0": IMAGES.astype(np.float32) / 255},
    "larger": {"arr_0": random_images(12, side=9)},
    "grey": {"arr_0": IMAGES[..., 0]},
    "alpha": {"arr_0": np.concatenate([IMAGES, IMAGES[..., :1]], axis=3)},
    "planes": {"arr_0": IMAGES.transpose(0, 3, 1, 2).copy()},
    "fortran": {"arr_0": np.asfortranarray(IMAGES)},
    "named": {"pictures": IMAGES},
    "pickled": {"arr_0": np.array([Evil()] * 12, dtype=object)},
    "pickled-labels": {"arr_0": IMAGES, "arr_1": np.array([Evil()] * 12, dtype=object)},
    "few-labels": {"arr_0": IMAGES, "arr_1": np.arange(11)},
    "float-labels": {"arr_0": IMAGES, "labels": np.arange(12.0)},
    "statistics": statistics(),
    "of-dinov2": statistics(1024, network="dinov2"),
    "of-another-size": statistics(48),
    "of-openai": statistics(2048, network=None),
    "not-finite": statistics(sigma=np.full((192, 192), np.nan)),
    "not-square": statistics(sigma=np.eye(191)),
    "not-symmetric": statistics(sigma=np.triu(np.ones((192, 192)))),
    "negative": statistics(sigma=-np.eye(192)),
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A folder of wrong files."""
    tmp_path = tmp_path_factory.mktemp("wrong")
    for name, arrays in ARRAYS.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", zipfile.ZipFile(tmp_path / "good.npz").read("arr_0.npy")[:-5])
    (tmp_path / "weights.pth").write_text("no weights")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    for folder, sides in {"mixed": (8, 9), "odd": (9, 9)}.items():
        (tmp_path / folder).mkdir()
        for index, side in enumerate(sides):
            Image.new("RGB", (side, 8)).save(tmp_path / folder / f"{index}.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_text("no image")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "samples.json").write_text("{}")
    return tmp_path


@pytest.fixture
def here(wrong, monkeypatch):
    """The same, which the command runs in, and no weights in PyTorch's cache."""
    monkeypatch.chdir(wrong)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(wrong / "cache"))
    return wrong


WITH = "--reference other.npz --features pixels"


@pytest.mark.parametrize(
    "text, message",
    [
        ("absent.npz", "absent.npz: no such file"),
        ("absent", "absent: nothing of that name"),
        ("empty", "empty"),
        ("broken", "0.png"),
        ("samples", "samples.json: lacks the entry images"),
        ("mixed", "1.png is 9 x 8 pixels, the first image of mixed is 8 x 8; with --resolution all are"),
        ("odd", "odd has images of 9 x 8 pixels, the reference other.npz of 8 x 8"),
        ("larger.npz", "larger.npz has images of 9 x 9 pixels, the reference other.npz of 8 x 8"),
        ("one.npz", "one.npz must have at least 2 images, got 1"),
        ("none.npz", "none.npz must have at least 2 images, got 0"),
        ("floats.npz", "floats.npz: arr_0 must be uint8 from 0 to 255, got float32"),
        ("grey.npz", "grey.npz: arr_0 is grey, (N, H, W); repeat it to (N, H, W, 3), got (12, 8, 8)"),
        ("alpha.npz", "alpha.npz: arr_0 must be (N, H, W, 3), got (12, 8, 8, 4)"),
        ("planes.npz", "planes.npz: arr_0 must be (N, H, W, 3), got (12, 3, 8, 8)"),
        ("fortran.npz", "fortran.npz: arr_0 is in Fortran order"),
        ("named.npz", "named.npz has no images: it must have arr_0 or images, it has pictures"),
        ("cut.npz", "cut.npz is no .npz, or is cut off or damaged"),
        ("short.npz", "short.npz: arr_0 is cut off"),
        ("text.npz", "text.npz is no .npz, or is cut off or damaged"),
        ("statistics.npz", "statistics.npz has no images"),
        ("pickled.npz", "pickled.npz: arr_0 holds pickled objects, which could run code when read; refused"),
        ("pickled-labels.npz", "pickled-labels.npz: arr_1 holds pickled objects"),
        ("few-labels.npz", "few-labels.npz: arr_1 must be (12,) of whole numbers, got (11,) of int64"),
        ("float-labels.npz", "float-labels.npz: labels must be (12,) of whole numbers"),
        ("labelled.npz --by-class", "per_class: other.npz has no labels; a folder per class has"),
        ("good.npz --by-class", "per_class: good.npz has no labels"),
        ("good.npz --bootstrap 1", "bootstrap must be 0, or at least 2, got 1"),
        ("good.npz --metrics fid", "metrics: 'fid' does not compare sets; those that do: fd, sfd, is"),
        ("good.npz --metrics psnr", "'psnr' does not compare sets"),
        ("good.npz --metrics is", "metrics: is cannot be computed: the features pixels give no class"),
        ("good.npz --reference five.npz --metrics precision", "cannot be computed: the 5 nearest neighbours"),
        ("good.npz --reference statistics.npz --metrics kid", "statistics.npz has statistics alone"),
        ("good.npz --reference of-dinov2.npz", "holds statistics of dinov2 (1,024 numbers), not of pixels"),
        (
            "good.npz --reference of-openai.npz",
            "holds statistics of inception-tf (2,048 numbers), not of pix",
        ),
        ("good.npz --reference of-another-size.npz", "the reference have 48 numbers, those of the drawn"),
        ("good.npz --reference not-finite.npz", "mu or sigma has numbers that are not finite"),
        (
            "good.npz --reference not-square.npz",
            "sigma must be (192, 192) of numbers, got (191, 191)",
        ),
        ("good.npz --reference not-symmetric.npz", "sigma is not symmetric, so no covariance"),
        ("good.npz --reference negative.npz", "negative.npz: the reference's features: no covariance, its"),
        (
            "good.npz --training larger.npz",
            "good.npz has images of 8 x 8 pixels, the training set larger.npz of",
        ),
        ("good.npz --weights weights.pth", "weights: the features 'pixels' have none, got 'weights.pth'"),
        ("good.npz --features inception-tf", "weights: inception-tf needs pt_inception-2015-12-05"),
        ("good.npz --features inception-tf --weights weights.pth", "weights.pth"),
        ("good.npz --features inception-tf --weights evil.pth", "evil.pth"),
        (
            "good.npz --features inception-tf --weights torchvision.pth",
            "torchvision.pth is torchvision's Inception",
        ),
        ("good.npz --features dinov2 --weights absent.pth", "weights: absent.pth is no file"),
        ("good.npz --features dinov2 --weights torchvision.pth", "torchvision.pth is not DINOv2's ViT-L/14"),
        ("good.npz --features efficientnet-lite0 --weights weights.pth", "weights.pth is a text file"),
        ("good.npz --features efficientnet-lite0 --weights torchvision.pth", "is not EfficientNet-Lite0: it"),
        ("good.npz --device tpu", "unknown device 'tpu'"),
        ("--model nowhere --per-class 1 -o out", "nowhere: no such file or folder"),
        ("--model mvar-digits --per-class 1 --top-p 2 -o out", "top_p must be"),
        ("--model mvar-digits --per-class 1 --held-out absent -o out", "absent: nothing of that name"),
        ("good.npz --reconstruct vae-digits", "good.npz has 8 x 8 pixels, the VQVAE is for 32 x 32"),
        ("good.npz --dtype bfloat16", "dtype must be float32 for the features 'pixels'"),
    ],
)
def test_one_line_that_names_the_thing(here, text, message):
    before = sorted(here.rglob("*"))
    reference = "" if "--reference" in text else "--reference other.npz"
    features = "" if "--features" in text else "--features pixels"
    result = mvar(f"evaluate {text} {reference} {features}")
    assert result.exit_code == 1, result.output
    said = [line for line in result.output.splitlines() if line]
    assert len(said) == 1, said
    assert said[0].startswith("Error: ")
    assert message in said[0]
    assert "unpickled" not in result.output
    assert sorted(here.rglob("*")) == before, "nothing should be written"


def test_fewer_images_than_dimensions_is_a_warning_with_the_number_that_would_do(here, caplog):
    before = sorted(here.rglob("*"))
    result = mvar("evaluate good.npz --reference other.npz --features pixels --metrics fd")
    assert sorted(here.rglob("*")) == before, "without --out nothing is written"
    assert result.exit_code == 0, result.output
    said = [record.getMessage() for record in caplog.records]
    expected = "12 drawn images for 192 numbers: the covariance has rank 11 at most"
    assert any(line.startswith(expected) and "it takes 193 images for full rank" in line for line in said)
