"""Sets of images by name: arrays, folders, datasets and their parts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.data.open import open_images
from mvar_models.distributed import Processes
from mvar_models.evaluation import open_sets
from mvar_models.evaluation.image_sets import ArrayImages, SourceImages, batches, evenly_spaced
from mvar_models.evaluation.open_sets import open_set
from mvar_models.pipeline.output import PipelineOutput

from feature_cases import random_images
from odd_images import plain_folder
from tiny_models import tiny_mvar, tiny_vqvae


def write(folder, images, names):
    for image, name in zip(images, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


def test_folders_are_taken_as_they_are(tmp_path):
    images = random_images(4, side=9)
    write(tmp_path, images, ["a/0.png", "a/1.png", "b/0.png", "b/1.png"])
    found = open_set(tmp_path)
    assert np.array_equal(found.read(np.arange(4))[0], images)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert open_set(tmp_path, resolution=5).size == (5, 5)


def test_a_folder_of_one_class_has_no_labels(tmp_path):
    write(tmp_path, random_images(2), ["0.png", "1.png"])
    assert open_set(tmp_path).labels is None


def test_other_sizes_in_a_folder_are_refused(tmp_path):
    write(tmp_path, [random_images(1)[0], random_images(1, side=6)[0]], ["0.png", "1.png"])
    with pytest.raises(ValueError, match=r"1\.png is 6 x 6 pixels.*4 x 4.*--resolution"):
        open_set(tmp_path).read(np.arange(2))


def test_what_mvar_sample_wrote_has_labels_and_no_grid(tmp_path):
    images = random_images(2)
    write(tmp_path, images, ["00000_7.png", "00001_3.png"])
    write(tmp_path, random_images(1, side=50), ["grid.png"])
    record = [{"file": "00000_7.png", "label": 7}, {"file": "00001_3.png", "label": 3}]
    (tmp_path / "samples.json").write_text(json.dumps({"images": record}))
    found = open_set(tmp_path)
    assert found.labels.tolist() == [7, 3]
    assert np.array_equal(found.read(np.arange(2))[0], images)


IMAGES = random_images(5, side=7)
TENSOR = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "given",
    [
        IMAGES,
        list(IMAGES),
        tuple(Image.fromarray(image) for image in IMAGES),
        [Image.fromarray(image).convert("RGBA") for image in IMAGES],
        [IMAGES[:2], IMAGES[2:]],
        TENSOR,
        list(TENSOR),
        TENSOR / 255,
        (TENSOR / 255).double(),
        IMAGES / 255,
        (IMAGES / 255).astype(np.float16).astype(np.float32),
        PipelineOutput([Image.fromarray(image) for image in IMAGES], [], None, "pil"),
        [PipelineOutput(IMAGES, [], None, "np")],
    ],
)
def test_images_in_memory_are_those_of_the_array(monkeypatch, given):
    monkeypatch.setattr(open_sets, "_CONVERTED", 2)
    found = open_set(given)
    assert np.array_equal(found.read(np.arange(5))[0], IMAGES)
    assert found.digest == ArrayImages(IMAGES).digest


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_what_a_pipeline_returns_is_taken(output_type):
    pipeline = MVARPipeline(tiny_mvar(), tiny_vqvae())
    drawn = pipeline([0, 1, 2], seed=0, output_type=output_type)
    expected = pipeline([0, 1, 2], seed=0, output_type="np").images
    assert np.array_equal(open_set(drawn).read(np.arange(3))[0], expected)


@pytest.mark.parametrize(
    "given, error, said",
    [
        (None, TypeError, "drawn must be a place, .* got NoneType"),
        ({"images": IMAGES}, TypeError, "got dict"),
        (5, TypeError, "got int"),
        ([], ValueError, "drawn must be at least one image, got none"),
        (IMAGES[..., 0], ValueError, r"drawn must be \(n, H, W, 3\), got \(5, 7, 7\)"),
        (IMAGES[0], ValueError, r"drawn must be \(n, H, W, 3\), got \(7, 7, 3\)"),
        (IMAGES.transpose(0, 3, 1, 2), ValueError, r"drawn must be \(B, H, W, 3\), got .*3, 7, 7"),
        (torch.from_numpy(IMAGES), ValueError, r"drawn must be \(B, 3, H, W\), got .*7, 7, 3"),
        (IMAGES.astype(np.int64), ValueError, r"drawn must be uint8, .* got torch\.int64"),
        (TENSOR / 127.5 - 1, ValueError, r"drawn must be in \[0, 1\] if float"),
        ([IMAGES[0], None], TypeError, "drawn must be .*got NoneType"),
        ([IMAGES[0], IMAGES[0, :6]], ValueError, "image 1 is 7 x 6, the first is 7 x 7"),
    ],
)
def test_other_things_are_one_line(given, error, said):
    with pytest.raises(error, match=said) as raised:
        open_set(given, name="drawn")
    assert "\n" not in str(raised.value)


def test_parts_of_a_dataset():
    sizes = [len(open_set(f"digits{part}")) for part in ("", "@train", "@held-out")]
    assert sizes[0] == 1797 == sizes[1] + sizes[2]
    with pytest.raises(ValueError, match="train or held-out, got 'test'"):
        open_set("digits@test")


def test_nothing_of_that_name():
    with pytest.raises(FileNotFoundError, match="nothing of that name"):
        open_set("./absent")


def test_batches_do_not_depend_on_the_processes():
    images = ArrayImages(random_images(11))
    alone = [indices.tolist() for indices, _ in batches(images, 4)]
    shared = [indices.tolist() for rank in (0, 1) for indices, _ in batches(images, 4, Processes(rank, 2))]
    assert sorted(shared) == alone == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_the_digest_changes_with_the_content():
    images = random_images(3)
    first = ArrayImages(images).digest
    images[0, 0, 0, 0] ^= 1
    assert ArrayImages(images).digest != first


def test_the_digest_of_a_dataset_is_that_of_its_images(tmp_path):
    """Uncompressed images that are painted over keep their names and sizes; a copy is the same set."""
    digests = []
    for colour in ("red", "red", "blue"):
        Image.new("RGB", (9, 9), colour).save(tmp_path / "x.bmp")
        digests += [open_set(tmp_path, resolution=side).digest for side in (None, 8)]
    assert digests[:2] == digests[2:4]
    assert not set(digests[:2]) & set(digests[4:])


def test_a_spread_is_even_and_no_more_than_there_is():
    assert evenly_spaced(9, 3).tolist() == [0, 4, 8]
    assert evenly_spaced(3, 9).tolist() == [0, 1, 2]
    assert evenly_spaced(1, 5).tolist() == [0]


def test_a_dataset_that_was_read_is_not_read_again_for_its_digest(tmp_path, monkeypatch):
    source = open_images(plain_folder(tmp_path / "data"), 16)
    images, fresh = (SourceImages(source, np.arange(len(source)), "data", 16) for _ in range(2))
    expected = fresh.digest
    images.read(np.arange(len(source)))
    monkeypatch.setattr(type(source), "raw", None)
    assert images.digest == expected
