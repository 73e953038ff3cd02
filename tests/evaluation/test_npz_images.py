"""Images of an .npz, read a piece at a time."""

import numpy as np
import pytest

from mvar_models.evaluation.image_sets import batches
from mvar_models.evaluation.npz_images import NpzImages

from feature_cases import random_images


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pieces_are_the_array(tmp_path, save):
    images, file = random_images(23), tmp_path / "images.npz"
    save(file, labels=np.arange(23), images=images)
    found = NpzImages(file)
    assert len(found) == 23
    assert found.size == (4, 4)
    assert np.array_equal(found.labels, np.arange(23))
    for world_size in (1, 2):
        for rank in range(world_size):
            for indices, part in batches(found, 5, rank, world_size):
                assert np.array_equal(part, images[indices])
    chosen = np.array([22, 3, 3, 0])
    assert np.array_equal(found.read(chosen)[0], images[chosen])


def test_names_of_the_released_files(tmp_path):
    file = tmp_path / "images.npz"
    np.savez(file, random_images(5), np.zeros(5, dtype=np.int64))
    assert NpzImages(file).labels.tolist() == [0] * 5
    assert len(NpzImages(file).digest) == 64


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "uint8 from 0 to 255, got float64"),
        ({"arr_0": np.zeros((3, 4, 4), np.uint8)}, "grey"),
        ({"arr_0": np.zeros((3, 4, 4, 1), np.uint8)}, "grey"),
        ({"arr_0": np.zeros((3, 3, 4, 4), np.uint8)}, r"\(N, H, W, 3\)"),
        ({"arr_0": np.array([{}, []], dtype=object)}, "pickled objects.*refused"),
        ({"arr_0": np.asfortranarray(random_images(3))}, "Fortran"),
        ({"other": random_images(3)}, "no images.*it has other"),
        ({"arr_0": random_images(3), "arr_1": np.zeros(2, int)}, r"arr_1 must be \(3,\)"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, said):
    file = tmp_path / "images.npz"
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=said):
        NpzImages(file)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    file = tmp_path / "images.npz"
    np.savez(file, random_images(30))
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"no \.npz, or is cut off"):
        NpzImages(file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        NpzImages(tmp_path / "absent.npz")
