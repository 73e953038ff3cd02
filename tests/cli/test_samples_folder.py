"""The folder of samples: what is recorded reads back, and a record means that all images are there."""

import json

import pytest
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.cli.samples_folder import RECORD, Sampling, read_samples, write_samples

from tiny_models import NAMES, tiny_mvar, tiny_vqvae

SAMPLING = Sampling(
    model="some/model",
    arch="mvar",
    vqvae=None,
    dtype="float32",
    options={"top_k": 4},
    labels=[2, 0, 1],
    seeds=[7, 8, 9],
    batch_size=2,
)


@pytest.fixture
def pipeline():
    return MVARPipeline(tiny_mvar(), tiny_vqvae())


def test_a_record_reads_back(pipeline, tmp_path):
    assert write_samples(pipeline, SAMPLING, tmp_path, columns=2) == 3
    assert read_samples(tmp_path / RECORD) == SAMPLING


def test_files_and_names_follow_the_labels(pipeline, tmp_path):
    write_samples(pipeline, SAMPLING, tmp_path, columns=2)
    images = json.loads((tmp_path / RECORD).read_text())["pictures"]
    assert [image["name"] for image in images] == [NAMES[label] for label in SAMPLING.labels]
    files = [image["file"] for image in images]
    assert files == ["00000_2.png", "00001_0.png", "00002_1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "grid.png", RECORD]
    drawn = pipeline(SAMPLING.labels, seed=SAMPLING.seeds, batch_size=2, top_k=4)
    for file, image in zip(files, drawn):
        assert Image.open(tmp_path / file).tobytes() == image.tobytes(), file


def test_a_failure_leaves_no_record_of_an_earlier_folder(pipeline, tmp_path):
    write_samples(pipeline, SAMPLING, tmp_path, columns=2)

    def fails_at_the_second_batch(labels, **options):
        if labels == [1]:
            raise MemoryError
        return pipeline(labels, **options)

    fails_at_the_second_batch.model = pipeline.model
    with pytest.raises(MemoryError):
        write_samples(fails_at_the_second_batch, SAMPLING, tmp_path, columns=2)
    assert not (tmp_path / RECORD).exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"pictures": [{"label": 1}]}'])
def test_another_file_is_named(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=RECORD.replace(".", r"\.")):
        read_samples(tmp_path / RECORD)
