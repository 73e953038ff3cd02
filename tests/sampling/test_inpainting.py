"""The rules for kept codes, by hand and against golden figures, and the filling of holes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvar_models import VQVAE, VQVAEConfig
from mvar_models.sampling.inpainting import RULES, ClosedRule, OwnScales, ReleasedRule, check_rule, fill_holes

from golden_weights import fill
from tiny_models import tiny_mvar, tiny_sample, tiny_var, tiny_vqvae

GOLDEN = Path(__file__).parents[1] / "golden" / "editing"
SIDES = (1, 2, 4)


def drawn_by(rule, quantizer, codes):
    """Codes and f_hat of a chain in which `codes` (B, L) are drawn and the rule replaces some."""
    f_hat = torch.zeros(codes.shape[0], quantizer.codebook.embedding_dim, *2 * quantizer.sides[-1:])
    kept = []
    for scale, drawn in enumerate(codes.split([side * side for side in quantizer.sides], dim=1)):
        drawn, vectors = rule.replace(scale, f_hat, drawn, quantizer.codebook(drawn))
        kept.append(drawn)
        f_hat = f_hat + quantizer.contribution_of_vectors(vectors, scale)
    return torch.cat(kept, dim=1), f_hat


@torch.no_grad()
@pytest.mark.parametrize("from_pixels", [False, True])
def test_the_released_rule_gives_the_released_figures(from_pixels, monkeypatch):
    """Codes drawn by the released Markov-VAR program, its box, and the f_hat that it came to."""
    golden = load_file(GOLDEN / "markov_tiny.safetensors")
    config = json.loads((GOLDEN / "markov_tiny.json").read_text())["config"]
    names = ("vocab_size", "z_channels", "ch")
    vqvae = fill(VQVAE(VQVAEConfig(*(config[name] for name in names), sides=config["patch_nums"])), "vae.")
    indices, drawn = golden["vae.indices"].long(), golden["markov.edit.drawn_indices"].long()
    side = 256 if from_pixels else config["patch_nums"][-1]
    top, left, bottom, right = (round(edge * side) for edge in config["edit_box"])
    redrawn = torch.zeros(2, side, side, dtype=torch.bool)
    redrawn[:, top:bottom, left:right] = True
    if from_pixels:
        monkeypatch.setattr(vqvae, "encode", lambda images: indices)
        rule = ReleasedRule.of(vqvae, torch.zeros(2, 3, 256, 256), redrawn)
    else:
        rule = ReleasedRule(vqvae.quantizer, indices, (~redrawn).float())
    codes, f_hat = drawn_by(rule, vqvae.quantizer, drawn)
    expected = golden["markov.edit.f_hat"]
    assert (f_hat - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (codes != drawn).any() and (codes != indices).any()


@torch.no_grad()
@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_the_released_rule_by_hand(make):
    """Sides 1, 2, 4; the right half of a 4 x 4 mask is drawn.

    The scale of one token is kept. At 2 x 2 the bilinear mask is 1, 0 in each row; at 4 x 4 it is itself.
    """
    quantizer, model = tiny_vqvae().quantizer, make()
    own = torch.arange(21).unsqueeze(0)
    keep = torch.tensor([[1.0, 1, 0, 0]] * 4).unsqueeze(0)
    places = [True, *[True, False] * 2, *[True, True, False, False] * 4]
    result = tiny_sample(model, [1], [3], given=ReleasedRule(quantizer, own, keep))
    free = tiny_sample(model, [1], [3], given=OwnScales(quantizer, own, 1))
    assert [bool(same) for same in result.indices[0] == own[0]][:3] == places[:3]
    assert torch.equal(result.indices[0, places], own[0, places])
    # At 2 x 2 what was drawn depends on the coarsest scale alone, which is the image's in both chains.
    assert torch.equal(result.indices[0, [2, 4]], free.indices[0, [2, 4]])
    assert torch.allclose(result.f_hat, quantizer.embed(result.indices), atol=1e-6)


def test_a_mask_between_the_cells_is_cut_at_a_half():
    """Bilinear resizing of 1, 1, 1, 0 to two cells takes the mean of the middle pixels: 1 and 0.5."""
    rule = ReleasedRule(
        tiny_vqvae().quantizer, torch.zeros(1, 21).long(), torch.tensor([[[1.0, 1, 1, 0]] * 4])
    )
    codes = torch.full((1, 4), 7)
    found, _ = rule.replace(1, torch.zeros(1, 4, 4, 4), codes, torch.zeros(1, 4, 4))
    assert found.tolist() == [[0, 7, 0, 7]]


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_mask_of_nothing_keeps_the_codes_of_the_image(rule, seed):
    vqvae = tiny_vqvae()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    made = RULES[rule].of(vqvae, images, torch.zeros(2, 16, 16, dtype=torch.bool))
    codes, f_hat = drawn_by(made, vqvae.quantizer, torch.randint(24, (2, 21)))
    own = vqvae.encode(images)
    # Rounding may choose the other one of two codes that are equally near.
    assert (codes == own).float().mean() > 0.9
    assert torch.allclose(f_hat, vqvae.quantizer.embed(codes), atol=1e-5)
    assert rule == "closed" or torch.equal(codes, own)


@torch.no_grad()
def test_the_closed_rule_draws_a_mask_of_all(seed):
    vqvae, drawn = tiny_vqvae(), torch.randint(24, (2, 21))
    rule = ClosedRule.of(vqvae, torch.rand(2, 3, 16, 16), torch.ones(2, 16, 16, dtype=torch.bool))
    assert torch.equal(drawn_by(rule, vqvae.quantizer, drawn)[0], drawn)


@torch.no_grad()
def test_the_closed_rule_keeps_a_cell_only_if_all_of_it_is_kept(seed):
    """One pixel in the top right corner: 3 of 4 cells are kept at 2 x 2, 15 of 16 at 4 x 4, none at 1 x 1."""
    vqvae, redrawn = tiny_vqvae(), torch.zeros(1, 16, 16, dtype=torch.bool)
    redrawn[0, 0, 15] = True
    rule = ClosedRule.of(vqvae, torch.rand(1, 3, 16, 16), redrawn)
    drawn = torch.full((1, 21), -1)
    f_hat = torch.zeros(1, 4, 4, 4)
    for scale, free in enumerate(([0], [1], [3])):
        part = drawn[:, : SIDES[scale] ** 2]
        codes, _ = rule.replace(scale, f_hat, part, torch.zeros(1, part.shape[1], 4))
        assert (codes[0] == -1).nonzero().flatten().tolist() == free


@torch.no_grad()
def test_the_closed_rule_corrects_what_was_drawn(seed):
    """Kept cells take the codes nearest to what f_hat lacks, not those that the image had."""
    vqvae, redrawn = tiny_vqvae(), torch.zeros(1, 16, 16, dtype=torch.bool)
    redrawn[:, :, 8:] = True
    images, f_hat = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 4, 4, 4)
    rule = ClosedRule.of(vqvae, images, redrawn)
    codes, vectors = rule.replace(2, f_hat, torch.zeros(1, 16).long(), torch.zeros(1, 16, 4))
    kept = [0, 1, 4, 5, 8, 9, 12, 13]
    features = vqvae.latents(fill_holes(images, redrawn))
    expected = vqvae.quantizer.nearest_codes(features - f_hat)
    assert torch.equal(codes[0, kept], expected[0, kept])
    assert torch.equal(vectors[0, kept], vqvae.quantizer.codebook(codes)[0, kept])
    assert not vectors[0, [2, 3, 6, 7]].any()


@torch.no_grad()
def test_the_closed_rule_does_not_see_the_hole(seed):
    vqvae, redrawn = tiny_vqvae(), torch.zeros(1, 16, 16, dtype=torch.bool)
    redrawn[:, 4:12, 4:12] = True
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    other = torch.where(redrawn[:, None], torch.rand(1, 3, 16, 16), image)
    drawn = torch.randint(24, (1, 21))
    for rule, same in (("closed", True), ("released", False)):
        rules = [RULES[rule].of(vqvae, each, redrawn) for each in (image, other)]
        first, second = (drawn_by(each, vqvae.quantizer, drawn)[1] for each in rules)
        assert torch.equal(first, second) == same


def test_own_scales_come_before_another_rule():
    quantizer = tiny_vqvae().quantizer
    own, drawn = torch.arange(21).unsqueeze(0), torch.full((1, 21), 23)
    codes, _ = drawn_by(OwnScales(quantizer, own, 2), quantizer, drawn)
    assert codes[0].tolist() == [*range(5), *[23] * 16]
    then = ReleasedRule(quantizer, own, torch.tensor([[[1.0, 0, 0, 0]] * 4]))
    codes, _ = drawn_by(OwnScales(quantizer, own, 2, then), quantizer, drawn)
    assert codes[0].tolist() == [*range(5), *[i if i % 4 == 1 else 23 for i in range(5, 21)]]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"rule.*closed, released.*'open'"):
        check_rule("open")


def holes(height, width, rows, columns):
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask


def test_what_is_known_stays_and_what_is_hidden_does_not_count(seed):
    image = torch.rand(1, 3, 13, 9)
    mask = holes(13, 9, slice(3, 10), slice(2, 7))
    filled = fill_holes(image, mask)
    other = torch.where(mask[:, None], torch.rand(1, 3, 13, 9), image)
    assert torch.equal(filled[:, :, ~mask[0]], image[:, :, ~mask[0]])
    assert torch.equal(fill_holes(other, mask), filled)


def test_a_hole_in_one_colour_takes_it():
    image = torch.full((1, 3, 12, 20), 0.3)
    mask = holes(12, 20, slice(2, 12), slice(5, 20))
    image[:, :, mask[0]] = -1
    assert torch.allclose(fill_holes(image, mask), torch.full((1, 3, 12, 20), 0.3), atol=1e-6)


def test_a_fill_lies_between_its_surroundings():
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:] = 1
    filled = fill_holes(image, holes(16, 16, slice(4, 12), slice(4, 12)))[0, 0, 8]
    assert ((filled >= 0) & (filled <= 1)).all()
    assert filled[4] < 0.35 and filled[11] > 0.65


def test_images_with_and_without_holes_mix():
    images = torch.rand(3, 3, 8, 8)
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[1] = True
    filled = fill_holes(images, mask)
    assert torch.equal(filled[[0, 2]], images[[0, 2]])
    assert torch.equal(filled[1], torch.zeros(3, 8, 8)), "nothing is known"
