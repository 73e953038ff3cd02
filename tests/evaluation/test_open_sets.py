"""Image sets by name: places, reconstructions and models in one table, classes by name."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mvar_models import MVARPipeline, VARPipeline
from mvar_models.cli.main import main
from mvar_models.data.folders import ClassFolders
from mvar_models.evaluation import evaluate
from mvar_models.evaluation.likelihood import held_out_likelihood
from mvar_models.evaluation.npz import write_npz
from mvar_models.evaluation.open_sets import open_set
from mvar_models.evaluation.reconstruction import reconstructed_images, sampled_images

from command_cases import mvar
from tiny_models import NAMES, tiny_mvar, tiny_vqvae


def test_digits_in_one_table(tmp_path):
    command = "evaluate digits@held-out --reference digits@train --features pixels --reconstruct vae-digits"
    command += " --model mvar-digits --per-class 1 --held-out digits --metrics fd,near_copies"
    options = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json")]
    done = CliRunner().invoke(main, [*command.split(), *options])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "figures.json").read_text())["sets"]
    names = [each["sets"]["drawn"]["name"] for each in found]
    assert names == ["digits@held-out", "digits@held-out through vae-digits", "mvar-digits"]
    assert found[0]["fd"] < found[2]["fd"]
    assert 1 < found[2]["likelihood"]["nats_per_code"] < 6
    assert (tmp_path / "out" / "mvar-digits.npz").is_file()


EVALUATE = "evaluate --reference digits@held-out --features pixels --metrics fd,near_copies --per-class 1"


def test_models_in_folders_of_one_name_are_drawn_and_shown_apart(tmp_path):
    """A run's model lies in a folder called model."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    VARPipeline.from_pretrained("var-digits").save_pretrained(runs / "a" / "model")
    MVARPipeline.from_pretrained("mvar-digits").save_pretrained(runs / "b" / "model")
    result = mvar(f"{EVALUATE} --model {runs}/a/model --model {runs}/b/model --out", out)
    assert result.exit_code == 0, result.output
    figures = [line.split()[2] for line in result.output.splitlines() if line.startswith(str(runs))]
    assert len(set(figures)) == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "a-model", "a-model.npz", "b-model", "b-model.npz",
    ]  # fmt: skip
    sheets = [(out / name / "neighbours.png").read_bytes() for name in ("a-model", "b-model")]
    assert sheets[0] != sheets[1]


def test_pictures_of_two_sets_of_one_name_lie_apart(tmp_path):
    source, out = tmp_path / "first" / "photos", tmp_path / "out"
    assert mvar("sample --model mvar-digits --n 2 -o", source).exit_code == 0
    shutil.copytree(source, tmp_path / "second" / "photos")
    command = "evaluate --reference digits@train --features pixels --metrics near_copies --out"
    result = mvar(command, out, source, tmp_path / "second" / "photos")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["first-photos", "second-photos"]


def test_a_place_that_is_not_there_is_known_before_anything_is_drawn(tmp_path):
    for wrong in ("--model ./absent", "./absent", "--reference ./absent"):
        result = mvar(f"{EVALUATE} --model mvar-digits {wrong} --out", tmp_path / "out")
        assert result.exit_code == 1 and "absent" in result.output
        assert not (tmp_path / "out").exists()


COLOURS = {"ant": 20, "bee": 90, "cat": 160, "dog": 230}


def images_of(name, count=12):
    noise = np.random.default_rng(len(name)).normal(0, 9, (count, 16, 16, 3))
    return (COLOURS[name] + noise).clip(0, 255).astype(np.uint8)


def folder(place, *classes):
    for name in classes:
        (place / name).mkdir(parents=True)
        for index, image in enumerate(images_of(name)):
            Image.fromarray(image).save(place / name / f"{index}.png")
    return place


def npz(place, *classes):
    np.savez(
        place.with_suffix(".npz"),
        images=np.concatenate([images_of(name) for name in classes]),
        labels=np.arange(len(classes)).repeat(12),
        class_names=np.array(classes),
    )
    return place.with_suffix(".npz")


def statistics(place, *classes):
    file = place.with_suffix(".npz")
    evaluate(folder(place, *classes), place, features="pixels", statistics=file)
    return file


def sampled(place, *classes):
    """As `mvar sample --labels` leaves it, by a model that knows more classes."""
    place.mkdir()
    record = []
    for name in classes:
        for index, image in enumerate(images_of(name)):
            Image.fromarray(image).save(place / f"{name}{index}.png")
            label = 5 + list(COLOURS).index(name)
            record.append({"file": f"{name}{index}.png", "label": label, "name": name})
    (place / "samples.json").write_text(json.dumps({"images": record}))
    return place


@pytest.mark.parametrize("drawn", [folder, npz, sampled])
@pytest.mark.parametrize("reference", [folder, npz, statistics])
def test_a_class_is_compared_with_the_class_of_its_name(tmp_path, drawn, reference):
    """Cat is number 0 of what was drawn, and number 2 of the reference."""
    found = evaluate(
        drawn(tmp_path / "drawn", "cat", "dog"),
        reference(tmp_path / "reference", "ant", "bee", "cat", "dog"),
        features="pixels",
    )
    assert (found["label_agreement"], found["left_out"].get("label_agreement")) == (1, None)
    assert found["class_diversity"] == pytest.approx(1, abs=1e-6)
    classes = {each["name"]: each["fd"] for each in found["per_class"]}
    assert list(classes) and set(classes) == {"cat", "dog"} and max(classes.values()) < 1e-3
    assert not [line for line in found["warnings"] if "class" in line]


def test_classes_that_the_reference_lacks_are_said(tmp_path, caplog):
    found = evaluate(
        folder(tmp_path / "drawn", "bee", "dog"),
        folder(tmp_path / "reference", "ant", "bee"),
        features="pixels",
    )
    said = f"{tmp_path / 'reference'} has none of 1 classes of {tmp_path / 'drawn'}: dog"
    assert said in found["warnings"] and said in caplog.text
    assert found["label_agreement"] == 0.5
    assert [each["name"] for each in found["per_class"]] == ["bee"]


def test_no_class_in_common_is_a_reason_and_no_figure(tmp_path):
    drawn, reference = folder(tmp_path / "a", "ant", "bee"), folder(tmp_path / "b", "cat", "dog")
    found = evaluate(drawn, reference, features="pixels")
    assert found["label_agreement"] is None and "per_class" not in found
    assert "(ant, bee) is one of" in found["left_out"]["label_agreement"]
    with pytest.raises(ValueError, match="per_class: no class of"):
        evaluate(drawn, reference, features="pixels", metrics=["fd"], per_class=True)


def test_numbers_are_compared_where_one_set_has_no_names(tmp_path):
    drawn = np.concatenate([images_of("ant"), images_of("bee")])
    reference = folder(tmp_path / "reference", "ant", "bee")
    found = evaluate(drawn, reference, features="pixels", labels=np.arange(2).repeat(12))
    assert found["label_agreement"] == 1
    assert "classes are compared by number: those of drawn have no names" in found["warnings"]


def test_what_networks_make_keeps_the_names(tmp_path):
    pipeline = MVARPipeline(tiny_mvar(), tiny_vqvae())
    write_npz(pipeline, tmp_path / "a.npz", per_class=1)
    drawn = sampled_images(pipeline, [0, 1])
    for images in (open_set(tmp_path / "a.npz"), drawn, reconstructed_images(drawn, pipeline.vqvae, "again")):
        assert tuple(images.class_names) == NAMES


def test_names_that_do_not_fit_beside_the_images_are_left_out(tmp_path):
    pipeline = MVARPipeline(tiny_mvar(), tiny_vqvae())
    pipeline.model.config = pipeline.model.config.replace(class_names=("a", "b", "c" * 70_000))
    assert write_npz(pipeline, tmp_path / "a.npz", per_class=1)
    found = open_set(tmp_path / "a.npz")
    assert found.labels.tolist() == [0, 1, 2] and found.class_names is None
    assert write_npz(pipeline, tmp_path / "a.npz", per_class=1)


def test_a_file_with_labels_beyond_its_names_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=images_of("ant", 2), labels=[0, 2], class_names=["ant", "bee"])
    with pytest.raises(ValueError, match=r"a\.npz: class_names has 2 names, for labels from 0 to 2"):
        open_set(tmp_path / "a.npz")


def test_the_likelihood_is_of_the_class_of_that_name(tmp_path):
    """The data has bee and cat as 0 and 1, the model as 1 and 2."""
    model, vqvae = tiny_mvar(), tiny_vqvae()
    figures = []
    for names in (NAMES, ("bee", "cat", "ant")):
        model.config = model.config.replace(class_names=names)
        source = ClassFolders(folder(tmp_path / names[0], "bee", "cat"), 16)
        figures.append(held_out_likelihood(model, vqvae, source)["nats_per_code"])
    assert figures[0] != figures[1]
    model.config = model.config.replace(class_names=("bee", "dog", "fox"))
    with pytest.raises(
        ValueError, match=r"classes that the model does not: cat; its classes are bee, dog, fox"
    ):
        held_out_likelihood(model, vqvae, source)
