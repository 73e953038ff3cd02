"""`mvar train`, `finetune`, `train-vqvae`: what they print and resume; tests/training has what they train."""

from command_cases import mvar
from run_cases import make_data


def test_train_vqvae_and_resume(tmp_path):
    out = tmp_path / "vae"
    shape = "--channels 32 --vocab-size 16 --z-channels 4 --sides 1,2,8"
    result = mvar(f"train-vqvae --data digits --steps 2 --batch-size 4 {shape} --out", out)
    assert result.exit_code == 0, result.output
    assert "PSNR" in result.output
    assert str(out / "model") in result.output
    assert (out / "model" / "model.safetensors").is_file()
    again = mvar("train-vqvae --resume", out)
    assert again.exit_code == 0, again.output


def test_a_vqvae_of_another_size_is_refused_before_images_are_encoded(tmp_path):
    data, out = make_data(tmp_path), tmp_path / "run"
    options = ["--data", data / "data", "--vqvae", data / "vae", "--out", out]
    result = mvar("finetune --model var-digits --steps 1", *options)
    assert result.exit_code == 1
    assert "var-digits: sides differs" in result.output
    assert not (out / "tokens").exists()
