"""The file for FID programs: the same bytes for any number of processes, and read a piece at a time."""

import json
import zipfile

import numpy as np
import pytest

from mvar_models import MVARPipeline
from mvar_models.distributed import Processes
from mvar_models.evaluation.image_sets import batches
from mvar_models.evaluation.npz import NpzImages, write_npz

from feature_cases import random_images
from progress_cases import recorded
from tiny_models import tiny_mvar, tiny_vqvae


@pytest.fixture(scope="module")
def pipeline():
    return MVARPipeline(tiny_mvar(), tiny_vqvae())


def read(path):
    with np.load(path) as values:
        assert values.files == ["arr_0"]
        return values["arr_0"]


def test_every_class_equally_often_and_a_seed_per_image(pipeline, tmp_path):
    assert write_npz(pipeline, tmp_path / "a.npz", per_class=3, seed=7, batch_size=4)
    expected = pipeline([0, 0, 0, 1, 1, 1, 2, 2, 2], seed=7, output_type="np", batch_size=4).images
    assert expected.dtype == np.uint8
    assert np.array_equal(read(tmp_path / "a.npz"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"], "the parts are gone"


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_any_number_of_processes_writes_the_same_file(pipeline, tmp_path, batch_invariant):
    write_npz(pipeline, tmp_path / "one.npz", per_class=5, batch_size=2, batch_invariant=batch_invariant)
    for world_size in (2, 3, 9):
        path = tmp_path / f"{world_size}.npz"
        done = [
            write_npz(
                pipeline,
                path,
                per_class=5,
                batch_size=2,
                processes=Processes(rank, world_size),
                batch_invariant=batch_invariant,
            )
            for rank in reversed(range(world_size))
        ]
        assert done == [False] * (world_size - 1) + [True]
        assert path.read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_a_stopped_run_goes_on_and_a_finished_one_has_nothing_to_do(pipeline, tmp_path):
    drawn = []

    def stopping(*arguments, **options):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(arguments)
        return pipeline(*arguments, **options)

    stopped = type("Stopped", (MVARPipeline,), {"__call__": lambda self, *a, **k: stopping(*a, **k)})(
        pipeline.model, pipeline.vqvae
    )
    with pytest.raises(KeyboardInterrupt), recorded() as meters:
        write_npz(stopped, tmp_path / "a.npz", per_class=4, batch_size=3)
    assert [(meter.done, meter.total) for meter in meters] == [(6, 12)]
    assert not (tmp_path / "a.npz").exists() and len(list((tmp_path / "a.npz.parts").glob("*.npy"))) == 2
    calls = []
    draw = pipeline.__class__.__call__
    pipeline_that_counts = type(
        "Counting",
        (MVARPipeline,),
        {"__call__": lambda self, *a, **k: calls.append(a) or draw(self, *a, **k)},
    )
    again = pipeline_that_counts(pipeline.model, pipeline.vqvae)
    assert write_npz(again, tmp_path / "a.npz", per_class=4, batch_size=3)
    assert len(calls) == 2, "two of four parts were there"
    write_npz(pipeline, tmp_path / "whole.npz", per_class=4, batch_size=3)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert write_npz(again, tmp_path / "a.npz", per_class=4, batch_size=3) and len(calls) == 2


def test_other_settings_are_refused(pipeline, tmp_path):
    write_npz(pipeline, tmp_path / "a.npz", per_class=1)
    with pytest.raises(FileExistsError, match=r"a\.npz.*other settings"):
        write_npz(pipeline, tmp_path / "a.npz", per_class=2)
    assert not write_npz(
        pipeline,
        tmp_path / "b.npz",
        per_class=2,
        batch_size=1,
        processes=Processes(0, 2),
        checkpoint={"model": "mvar-d16"},
    )
    with pytest.raises(ValueError, match=r"b\.npz\.parts.*\(model, seed differ\)"):
        write_npz(
            pipeline,
            tmp_path / "b.npz",
            per_class=2,
            batch_size=1,
            seed=1,
            processes=Processes(0, 2),
            checkpoint={"model": "mvar-d20"},
        )
    (tmp_path / "c.npz").write_bytes(b"not an archive")
    with pytest.raises(FileExistsError, match=r"c\.npz"):
        write_npz(pipeline, tmp_path / "c.npz", per_class=1)
    with pytest.raises(ValueError, match=r"per_class.*0"):
        write_npz(pipeline, tmp_path / "d.npz", per_class=0)


def test_what_an_earlier_version_drew_is_refused_since_it_does_not_name_its_weights(pipeline, tmp_path):
    record = json.dumps({"per_class": 50, "seed": 0, "batch_size": 32, "pictures": 150})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.comment = record.encode()
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.npz.*model_weights"):
        write_npz(pipeline, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    (tmp_path / "b.npz.parts").mkdir()
    (tmp_path / "b.npz.parts" / "settings.json").write_text(record)
    with pytest.raises(ValueError, match=r"b\.npz\.parts holds images.*model_weights"):
        write_npz(pipeline, tmp_path / "b.npz")


def test_the_later_of_two_processes_that_join_finds_the_file_complete(pipeline, tmp_path, monkeypatch):
    """The other one joins and removes the parts just before this one reads the first of them."""
    path, load = tmp_path / "a.npz", np.load

    def late(*args, **options):
        monkeypatch.setattr(np, "load", load)
        assert write_npz(pipeline, path, per_class=1)
        return load(*args, **options)

    monkeypatch.setattr(np, "load", late)
    assert write_npz(pipeline, path, per_class=1)
    assert len(read(path)) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_the_array_may_exceed_what_a_plain_zip_entry_holds(pipeline, tmp_path):
    """50,000 images of 256 px are 9.8 GB; without zip64 the limit is 2 GiB."""
    assert write_npz(pipeline, tmp_path / "a.npz", per_class=1)
    # The local header: 30 bytes, the name, and the field of zip64, which has room for sizes of 8 bytes.
    assert (tmp_path / "a.npz").read_bytes()[30 + len("arr_0.npy") :].startswith(b"\x01\x00\x10\x00")


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
            for indices, part in batches(found, 5, Processes(rank, world_size)):
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
