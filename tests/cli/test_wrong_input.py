"""What a command cannot do is one line that names the argument, before anything is written."""

import pytest

from command_cases import mvar


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
        ("edit --image x.png --from-scale 1 --model mvar-digits -o x.tiff", 2, "--out must end in .png"),
        ("edit --image x.png --from-scale 1 --model mvar-digits -o no/x.png", 1, "no is no folder"),
        ("edit --image x.png --from-scale 1 --model mvar-digits", 1, "x.png cannot be opened"),
        ("models 'dit*'", 2, "no model matches 'dit*'; there are vae-ch160v4096z32, var-d16"),
        ("export --model mvar-digits --out nowhere/x.pth", 1, "nowhere is no folder"),
        ("sample --model mvar-digits --labels ten", 1, "unknown label 'ten': its classes are zero, one"),
        ("sample --model mvar-digits --labels thre", 1, "unknown label 'thre': did you mean 'three'?"),
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
