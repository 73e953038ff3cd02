"""The printed table, and images of an evaluation."""

import numpy as np
from PIL import Image

from mvar_models.evaluation import evaluate
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.report import table

from feature_cases import random_images, toy


def test_only_what_is_known_has_a_column():
    found = evaluate(random_images(30), random_images(30, seed=1), features="pixels")
    head, row, *notes = table([found])
    assert "FD-pixels" in head
    assert "FID" not in head
    assert "IS" not in head.split()
    assert f"{found['fd']:.2f}" in row
    assert "reference: reference, 30 images; distances of neighbours in float64" in notes


def test_every_set_has_a_row():
    found = [evaluate(random_images(30, seed=i), random_images(30), features=toy()) for i in range(2)]
    lines = list(table(found))
    assert lines[1].startswith("drawn")
    assert lines[2].startswith("drawn")
    assert "IS" in lines[0].split()


def test_copies_stand_above_their_originals(tmp_path):
    training = random_images(40)
    drawn = np.concatenate([random_images(20, seed=1), training[[5]]])
    labels = np.arange(40) % 4
    evaluate(
        ArrayImages(drawn, labels[:21]), ArrayImages(training, labels), features="pixels", images_to=tmp_path
    )
    shown = np.asarray(Image.open(tmp_path / "neighbours.png"))
    assert np.array_equal(shown[:64, :64], shown[66:130, :64])
    assert np.array_equal(shown[:64:16, :64:16], training[5])
    names = Image.open(tmp_path / "classes.png").convert("L").crop((0, 0, 8, 96))
    assert np.asarray(names).min() < 128, "a row begins with the name of its class"
