"""Classes by exact likelihood: sums, pruning, evidence, and `mvar classify`."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models import MVAR, VQVAE
from mvar_models.data.digits import Digits
from mvar_models.evaluation.likelihood import evidence, evidence_map, posterior, stages

from command_cases import mvar
from tiny_models import NAMES, tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae

MAKE = {"var": tiny_var, "mvar": tiny_mvar, "markov-var": tiny_markov_var}


@pytest.fixture(params=list(MAKE))
def model(request):
    return MAKE[request.param]()


@pytest.fixture
def image(seed):
    return torch.rand(3, 16, 16) * 2 - 1


def brute_force(model, vqvae, image):
    """(K,) log-likelihoods: every class in one forward pass, all scales at once."""
    count = model.config.num_classes
    indices = vqvae.encode(image[None])
    inputs = vqvae.quantizer.scale_inputs(indices)
    with torch.no_grad():
        logits = model(torch.arange(count), inputs.expand(count, -1, -1))
    chosen = logits.double().log_softmax(-1).gather(-1, indices.expand(count, -1)[..., None])
    return chosen.sum((1, 2))


def test_every_class_gets_the_sum_of_its_tokens(model, image):
    vqvae = tiny_vqvae()
    found = posterior(model, vqvae, image, margin=None)
    expected = brute_force(model, vqvae, image)
    torch.testing.assert_close(found.log_likelihoods, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.probabilities, expected.softmax(0), rtol=1e-3, atol=1e-5)
    assert found.prediction == expected.argmax() and found.work == 1
    one_by_one = posterior(model, vqvae, image, margin=None, batch_size=1)
    torch.testing.assert_close(one_by_one.log_likelihoods, expected, rtol=1e-5, atol=1e-4)


def test_a_class_far_behind_is_dropped_and_the_rest_is_exact(model, image):
    vqvae, plan = tiny_vqvae(), stages(model)
    whole = posterior(model, vqvae, image, margin=None).scale_log_likelihoods
    first = whole[: plan[0].stop].sum(0)
    behind = (first.max() - first).sort().values
    margin = float(behind[1] + behind[2]) / 2  # keeps two of the three classes
    found = posterior(model, vqvae, image, margin=margin)
    kept = first >= first.max() - margin
    assert kept.sum() == 2 and not found.scale_log_likelihoods[plan[0]][:, ~kept].isnan().any()
    assert (found.log_likelihoods[~kept] == -torch.inf).all() and (found.probabilities[~kept] == 0).all()
    assert found.scale_log_likelihoods[-1].isnan().sum() >= 1 and found.work < 1.25


def test_with_room_enough_nothing_is_dropped(model, image):
    vqvae = tiny_vqvae()
    found = posterior(model, vqvae, image, margin=1e6)
    whole = posterior(model, vqvae, image, margin=None)
    torch.testing.assert_close(found.scale_log_likelihoods, whole.scale_log_likelihoods, rtol=1e-5, atol=1e-4)


def test_scales_alone_are_computed_once_and_var_begins_at_the_coarsest():
    assert stages(tiny_mvar()) == [range(0, 1), range(1, 2), range(2, 3)]
    assert stages(tiny_var()) == [range(0, 2), range(0, 3)]  # 5 of 21 tokens are more than an eighth
    assert posterior(tiny_mvar(), tiny_vqvae(), torch.zeros(3, 16, 16), margin=1e6).work == 1
    assert posterior(tiny_var(), tiny_vqvae(), torch.zeros(3, 16, 16), margin=1e6).work == 1 + 5 / 21


def test_evidence_adds_up_to_the_gain_over_no_class(model, image):
    vqvae, none = tiny_vqvae(), model.config.num_classes
    indices = vqvae.encode(image[None])
    with torch.no_grad():
        given, without = model.token_losses(
            torch.tensor([1, none]),
            vqvae.quantizer.scale_inputs(indices).expand(2, -1, -1),
            indices.expand(2, -1),
        ).double()
    grids = evidence(model, vqvae, image, 1)
    assert [grid.shape for grid in grids] == [(1, 1), (2, 2), (4, 4)]
    expected = float((without - given).sum())
    assert float(sum(grid.sum() for grid in grids)) == pytest.approx(expected, abs=1e-4)
    spread = evidence_map(grids, 16)
    assert float(spread.sum()) == pytest.approx(expected, abs=1e-4)
    # A pixel has its share of the token that covers it, at every scale.
    assert float(spread[0, 15]) == pytest.approx(
        float(grids[0][0, 0] / 256 + grids[1][0, 1] / 64 + grids[2][0, 3] / 16), abs=1e-6
    )


@pytest.mark.parametrize("margin", [0, -1.0, float("nan")])
def test_a_margin_that_keeps_nothing_is_refused(margin):
    with pytest.raises(ValueError, match=r"margin must be positive or None, got"):
        posterior(tiny_mvar(), tiny_vqvae(), torch.zeros(3, 16, 16), margin=margin)


def test_digits_are_told_apart_and_pruning_changes_no_answer():
    model, vqvae = MVAR.from_pretrained("mvar-digits").eval(), VQVAE.from_pretrained("vae-digits").eval()
    digits = Digits(32)
    members = digits.held_out[:40]
    pruned = [posterior(model, vqvae, digits.read(index)) for index in members]
    whole = [posterior(model, vqvae, digits.read(index), margin=None) for index in members]
    assert [each.prediction for each in pruned] == [each.prediction for each in whole]
    assert np.mean([each.prediction == digits.labels[i] for each, i in zip(pruned, members)]) >= 0.95
    assert np.mean([each.work for each in pruned]) < 0.5


@pytest.fixture
def folders(tmp_path, seed):
    """A tiny model's folder and images in two of its classes and one that it does not have."""
    (tmp_path / "model").mkdir()
    model, rng = tiny_mvar(), np.random.default_rng(seed)
    model.save_pretrained(tmp_path / "model")
    tiny_vqvae().save_pretrained(tmp_path / "model" / "vqvae")
    for name in ("bee", "ant", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path


def test_the_command_writes_what_it_says(folders):
    result = mvar(
        "classify", folders / "images", "--accept-psnr", "--model", folders / "model",
        "--json", folders / "all.json",
        "--csv", folders / "all.csv", "--explain", folders / "maps",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    written = json.loads((folders / "all.json").read_text())
    assert written["images"] == 6 and written["classes"] == list(NAMES) and 0 < written["work"] <= 1
    confusion = np.array(written["confusion"])
    # dog is no class of the model's, and no image is a cat.
    assert confusion.sum(1).tolist() == [2, 2, 0]
    assert written["accuracy"] == pytest.approx(np.trace(confusion) / 4)
    assert f"accuracy {written['accuracy']:.4f}" in result.output
    with (folders / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["ant", "ant", "bee", "bee", "", ""]
    assert all(row["predicted"] in NAMES and row["predicted"] != row["second"] for row in rows)
    assert len(list((folders / "maps").glob("*.png"))) == 6
    assert Image.open(next((folders / "maps").glob("*.png"))).size == (32, 16)


def test_pictures_of_no_known_class_get_no_accuracy(folders):
    for name in ("ant", "bee"):
        for file in (folders / "images" / name).iterdir():
            file.unlink()
        (folders / "images" / name).rmdir()
    result = mvar(
        "classify",
        folders / "images",
        "--accept-psnr",
        "--model",
        folders / "model",
        "--json",
        folders / "all.json",
    )
    assert result.exit_code == 0, result.output
    assert json.loads((folders / "all.json").read_text())["accuracy"] is None
    assert "classes of the data are not the model's" in result.output


def test_images_of_another_size_are_named(folders):
    np.savez(folders / "large.npz", np.zeros((2, 8, 8, 3), dtype=np.uint8))
    result = mvar("classify", folders / "large.npz", "--model", folders / "model")
    assert result.exit_code == 1 and "has images of 8 x 8 pixels" in result.output
