"""Contact sheets: what is in which cell."""

import numpy as np
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.demo.gallery import draw_gallery
from mvar_models.images import sheet


def test_a_sheet_keeps_rows_apart():
    """Small images are enlarged by whole pixels; a short row ends in white."""
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    pixels = np.array(sheet({"a": [red, blue], "b": [blue]}))
    assert pixels.shape[0] == 2 * 96 + 2
    body = pixels[:, -(2 * 96 + 2) :]
    assert (body[:96, :96] == (255, 0, 0)).all()
    assert (body[:96, 98:] == (0, 0, 255)).all()
    assert (body[98:, :96] == (0, 0, 255)).all()
    assert (body[98:, 98:] == 255).all()
    assert (pixels[:, : pixels.shape[1] - body.shape[1]] < 128).any()


def test_the_first_sheet_holds_the_pipelines_images(tmp_path):
    """Cell for cell, and the index names every sheet."""
    pipeline = MVARPipeline.from_pretrained("mvar-digits")
    files = draw_gallery(pipeline, tmp_path / "out", name="digits", labels=["three", 7], samples=2, seed=5)
    assert [file.name for file in files] == [
        "classes.png", "scales.png", "inpainting.png", "classes_changed.png", "index.md",
    ]  # fmt: skip
    index = files[-1].read_text()
    assert index.startswith("# digits\n")
    assert all(f"({file.name})" in index for file in files[:-1])
    expected = pipeline([3, 7], num_images_per_label=2, seed=5)
    body = np.array(Image.open(files[0]))[:, -(2 * 96 + 2) :]
    cells = [body[top : top + 96 : 3, left : left + 96 : 3] for top in (0, 98) for left in (0, 98)]
    for cell, image in zip(cells, expected):
        assert np.array_equal(cell, np.array(image))
    scales = np.array(Image.open(files[1]))
    assert np.array_equal(scales[0:96:3, -96::3], np.array(expected[0]))
    inpainted = np.array(Image.open(files[2]))[:96]
    original, drawn = inpainted[::3, -4 * 98 + 2 : -4 * 98 + 98 : 3], inpainted[::3, -96::3]
    assert np.array_equal(original[:8], drawn[:8])
    assert not np.array_equal(original[8:24, 8:24], drawn[8:24, 8:24])


def test_classes_of_one_name_have_rows_of_their_own(tmp_path):
    """ImageNet has two that are called crane, and two called maillot."""
    pipeline = MVARPipeline.from_pretrained("mvar-digits")
    names = list(pipeline.model.config.class_names)
    names[3] = names[7]
    pipeline.model.config = pipeline.model.config.replace(class_names=names)
    files = draw_gallery(pipeline, tmp_path, name="digits", labels=[3, 7, 7], samples=1)
    assert [Image.open(file).height for file in files[:-1]] == [3 * 98 - 2] * 4
