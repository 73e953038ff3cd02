"""The commands edit and gallery."""

import numpy as np
import pytest
from PIL import Image

from mvar_models import MVARPipeline

from command_cases import mvar

EDIT = "edit --model mvar-digits"


@pytest.fixture
def files(tmp_path):
    """A digit and a mask of its bottom half."""
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    MVARPipeline.from_pretrained("mvar-digits")([3], seed=0)[0].save(image)
    half = np.zeros((32, 32), dtype=np.uint8)
    half[16:] = 255
    Image.fromarray(half).save(mask)
    return image, mask


def pixels(path):
    return np.array(Image.open(path))


def test_inpainting(files, tmp_path):
    image, mask = files
    out = tmp_path / "out.png"
    options = "--labels 5 --seed 3 --rule released --no-paste --strength 0.8 --top-k 40"
    options += " --sampler smooth --guidance-schedule constant"
    preset = tmp_path / "preset.json"
    preset.write_text('{"guidance_scale": 2.5, "top_k": 9, "top_p": 0.9}')
    paths = ("--image", image, "--mask-image", mask, "--preset", preset, "-o", out)
    result = mvar(f"{EDIT} {options}", *paths)
    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    expected = MVARPipeline.from_pretrained("mvar-digits").inpaint(
        Image.open(image), Image.open(mask), labels=[5], seed=3, rule="released", paste=False, strength=0.8,
        guidance_scale=2.5, guidance_schedule="constant", top_k=40, top_p=0.9, sampler="smooth",
    )  # fmt: skip
    assert np.array_equal(pixels(out), np.array(expected[0]))


def test_several_images_are_numbered(files, tmp_path):
    image, mask = files
    files = ("--image", image, "--mask-image", mask, "-o", tmp_path / "x.png")
    result = mvar(f"{EDIT} --labels 3,seven --n 2", *files)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.glob("x*")) == [f"x_00{i}.png" for i in range(4)]
    assert np.array_equal(pixels(tmp_path / "x_002.png")[:16], pixels(image)[:16])


def test_outpainting_and_variations(files, tmp_path):
    image, _ = files
    out = tmp_path / "out.png"
    assert mvar(f"{EDIT} --padding 0,4,0,2 --image", image, "-o", out).exit_code == 0
    assert pixels(out).shape == (38, 32, 3)
    assert np.array_equal(pixels(out)[4:36], pixels(image))
    assert mvar(f"{EDIT} --from-scale 0 --labels 4 --seed 9 --image", image, "-o", out).exit_code == 0
    expected = MVARPipeline.from_pretrained("mvar-digits")([4], seed=9, output_type="np").images[0]
    assert np.array_equal(pixels(out), expected)


def test_a_turned_photo_and_a_deep_mask_are_edited_as_from_python(tmp_path):
    """Python's caller hands over what Pillow opened, and gets what the command writes: upright."""
    image, mask, out = (tmp_path / name for name in ("turned.jpg", "deep.png", "out.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((20, 32)).convert("RGB").save(image, quality=95, exif=exif)
    Image.fromarray(np.repeat(np.where(np.arange(32) < 16, 0, 65535)[None], 20, 0).astype(np.uint16)).save(
        mask
    )
    command = mvar(f"{EDIT} --accept-psnr --labels 5 --image", image, "--mask-image", mask, "-o", out)
    assert command.exit_code == 0, command.output
    (expected,) = MVARPipeline.from_pretrained("mvar-digits").inpaint(
        Image.open(image), Image.open(mask), labels=[5]
    )
    assert expected.size == (32, 20)
    assert np.array_equal(pixels(out), np.array(expected))


def test_what_cannot_be_edited_is_named(files, tmp_path):
    image, _ = files
    notes = tmp_path / "notes.png"
    notes.write_text("to do\n")
    before = sorted(tmp_path.iterdir())
    small = "mask_image must have the size of image, 32 x 32, got 8 x 8"
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    for arguments, message in (
        ((image, "--mask-image", tmp_path / "small.png"), small),
        ((notes, "--from-scale", 1), f"{notes} is not an image"),
        ((image, "--mask-image", tmp_path / "none.png"), "none.png cannot be opened"),
        ((image, "--from-scale", 9), "from_scale must be a whole number from 0 to 6, got 9"),
    ):
        result = mvar(f"{EDIT} -o", tmp_path / "out.png", "--image", *arguments)
        assert result.exit_code == 1
        assert message in result.output
        assert "Traceback" not in result.output
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "small.png"])


def test_a_run_folder_draws_its_model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    MVARPipeline.from_pretrained("mvar-digits").save_pretrained(run / "best")
    (run / "config.yaml").write_text("kind: transformer\n")
    found = []
    for model in ("mvar-digits", run):
        out = tmp_path / str(len(found))
        result = mvar("gallery --labels 3 --n 1 --seed 2 --top-k 9", "--model", model, "-o", out)
        assert result.exit_code == 0, result.output
        assert f"4 sheets, listed in {out / 'index.md'}" in result.output
        found.append([(out / name).read_bytes() for name in ("classes.png", "inpainting.png")])
    assert found[0] == found[1]


def test_what_draws_must_be_named(tmp_path):
    result = mvar("gallery", "-o", tmp_path)
    assert result.exit_code == 2
    assert "--model is missing" in result.output
