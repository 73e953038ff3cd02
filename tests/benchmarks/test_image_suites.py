"""The suites of evaluation and editing: damaged images move the figures as theory says."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.suites import editing, evaluation, family
from mvar_models.evaluation.features.network import feature_network
from mvar_models.networks.scorer import Scorer, ScorerConfig
from mvar_models.pipeline import pipeline_for
from mvar_models.sampling.settings import SamplingSettings

from script_cases import load_script


@pytest.fixture(scope="module")
def images():
    return evaluation.real_images("digits", 256)


@pytest.fixture(scope="module")
def found(images):
    """Figures of every damaged set, in pixels."""
    return {each["images"]: each for each in evaluation.judged(images, feature_network("pixels"))}


def test_sets_are_disjoint_and_of_equal_size(images):
    sets = [images.reference, images.training, images.others]
    assert [len(each) for each in sets] == [256, 256, 1285]
    assert len(np.unique(np.concatenate(sets).reshape(1797, -1), axis=0)) == 1797
    counts = {name: len(each) for name, each in evaluation.damaged(images)}
    assert set(counts.values()) == {256}


def test_noise_and_missing_classes_are_ordered(found):
    fd = {name: each["fd"] for name, each in found.items()}
    assert fd["real"] < fd["noise of 20"] < fd["noise of 40"]
    assert fd["real"] < fd["half of the classes only"] < fd["the two largest classes only"]


def test_missing_classes_cost_recall_and_not_precision(found):
    real, dropped = found["real"], found["the two largest classes only"]
    assert dropped["recall"] < 0.5 * real["recall"]
    assert dropped["coverage"] < 0.5 * real["coverage"]
    assert dropped["precision"] > 0.9 * real["precision"]


def test_only_near_copies_shows_memorising(found):
    """Copies of all training images are as good as real ones to every other figure."""
    real, copies = found["real, others"], found["copies of training images"]
    assert copies["near_copies"] == 1
    assert 0.4 < found["half copies of training images"]["near_copies"] < 0.65
    assert real["near_copies"] < 0.2
    assert copies["fd"] < 1.5 * real["fd"]
    assert copies["recall"] > 0.8 * real["recall"]
    few = found["copies of 20 training images"]
    assert few["recall"] < 0.5 * real["recall"]
    assert few["fd"] > 1.5 * real["fd"]


def test_equal_images_are_computed_once():
    network = evaluation.Remembering(feature_network("pixels"))
    plain, calls = network._network, []

    def counted(images):
        calls.append(len(images))
        return plain(images)

    network._network = counted
    images = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8)[[0, 1, 0, 2]]
    assert torch.equal(network(images).features, plain(images).features)
    assert torch.equal(network(images[:2]).features, plain(images[:2]).features)
    assert calls == [3]


def test_the_suite_writes_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_DAMAGED", ("pixels",))
    monkeypatch.setattr(evaluation, "FEATURES", {"pixels": ""})
    command = ["--suite", "evaluation", "--quick", "--seconds", "0.05", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "| pixels | copies of training images |" in result.output
    records = json.loads((tmp_path / "evaluation.json").read_text())["records"]
    (speed,) = (each for each in records if "images per second" in each)
    assert speed["images per second"] > 10
    assert speed["weights"] == "own"


def test_images_need_classes(tmp_path):
    from PIL import Image

    for index in range(3):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{index}.png")
    with pytest.raises(ValueError, match="must have classes"):
        evaluation.real_images(str(tmp_path), 1)


def test_the_editing_suite_writes_a_table_and_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(editing, "MODELS", ("mvar-digits",))
    result = CliRunner().invoke(main, ["--suite", "editing", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "editing.json").read_text())["records"]
    assert {(r["hole"], r["class"], r["rule"]) for r in records} == {
        (hole, kind, rule)
        for hole in ("centre", "bottom half")
        for kind in ("same", "other")
        for rule in ("closed", "released")
    }
    assert all(0 <= r["agreement, pasted"] <= 1 and 10 < r["PSNR of the kept part"] < 60 for r in records)
    # The released rule knows what was in the hole: it draws the digit that was there, whatever is asked for.
    centre = {r["rule"]: r["agreement"] for r in records if (r["hole"], r["class"]) == ("centre", "other")}
    assert centre["released"] < centre["closed"]
    # Two holes, each with originals, masked originals and one row per class and rule.
    assert Image.open(tmp_path / "editing.png").size == (12 * 34 - 2, 12 * 34 - 2)
    assert "| mvar-digits | centre | other | closed |" in (tmp_path / "editing.md").read_text()


def test_a_seam_is_the_step_across_the_edge_of_the_mask():
    mask = editing.holes(8)["centre"]
    image = mask.float().expand(1, 3, 8, 8)
    assert editing.seam(image, mask) == pytest.approx(255)
    assert editing.seam(torch.full((1, 3, 8, 8), 0.4), mask) == 0
    bottom = editing.holes(8)["bottom half"]
    assert bottom.sum() == 32 and editing.seam(image, bottom) < 255


def test_the_family_is_counted_as_it_computes():
    pipelines = {arch: pipeline_for(f"{arch}-digits") for arch in ("var", "mvar")}
    models = {arch: pipeline.model for arch, pipeline in pipelines.items()}
    config = models["var"].config
    scorer = Scorer(ScorerConfig(10, config.z_channels, config.sides, width=8))
    methods = {each.name: each for each in family.METHODS if each.model != "neon"}
    found = {name: family.counted(each, models, scorer, itemsize=4) for name, each in methods.items()}
    pairs = {name: record["pairs"] for name, record in found.items()}
    assert pairs["VAR"] == models["var"].neighborhood(range(len(config.sides))).attended_pairs()
    assert pairs["MVAR"] == models["mvar"].pyramid.attended_pairs() < pairs["VAR drafts, MVAR refines"]
    assert pairs["prefix guidance"] == 2 * pairs["MVAR"] - 1
    # A refiner that is a VAR computes all its scales, and MVAR its first three.
    assert pairs["VAR"] < pairs["MVAR drafts, VAR refines"] < pairs["VAR"] + pairs["MVAR"]
    extra = found["LSRS, 4 candidates"]["parameters"] - found["MVAR"]["parameters"]
    assert extra == scorer.num_parameters()
    indices = torch.randint(config.vocab_size, (1, config.length))
    for name, budget in (("VAR", 1.0), ("ScaleKV, 50% of the keys", 0.5)):
        settings = SamplingSettings.of(config, cache_budget=budget)
        last = load_script("cache_rules").last_scale(pipelines["var"], torch.tensor([3]), indices, settings)
        assert found[name]["cache"] == last[1]
    assert found["MVAR"]["cache"] == 0 < found["VAR drafts, MVAR refines"]["cache"] < found["VAR"]["cache"]


def test_the_family_suite_judges_what_was_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(family, "feature_network", lambda name, device: feature_network("pixels"))
    monkeypatch.setattr(family, "METHODS", family.METHODS[1:4])
    command = ["--suite", "family", "--quick", "--seconds", "0.01", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "family.json").read_text())["records"]
    plain, neon, scored = records[:3]
    assert 0 < plain["fd"]
    assert 0 <= plain["label_agreement"] <= 1
    assert "fd" not in neon, "without --neon there is no Neon model to judge"
    assert "fd" not in scored, "an untrained scorer says nothing about LSRS"
    assert [each["at"] for each in records[3:]] == ["d16"] * 3
    assert records[3]["parameters"] > 100 * plain["parameters"]
