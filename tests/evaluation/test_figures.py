"""Images of an evaluation show the right images."""

import numpy as np
from PIL import Image

from mvar_models.evaluation import evaluate
from mvar_models.evaluation.image_sets import ArrayImages

from feature_cases import random_images


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
    assert (tmp_path / "classes.png").is_file()
