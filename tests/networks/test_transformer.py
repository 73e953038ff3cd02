"""The transformer's inputs, losses and classes; its figures are test_golden.py's."""

import pytest
import torch

from tiny_models import tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae

LENGTH = 21


@pytest.fixture
def batch(seed):
    labels, indices = torch.tensor([0, 3, 1]), torch.randint(24, (3, LENGTH))
    return labels, tiny_vqvae().quantizer.scale_inputs(indices).detach(), indices


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar, tiny_markov_var])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_cross_entropies_of_the_logits(batch, make, smoothing, monkeypatch):
    """Also where the tokens come in several chunks."""
    model = make()
    labels, inputs, indices = batch
    logits = model(labels, inputs).transpose(1, 2)
    expected = torch.nn.functional.cross_entropy(logits, indices, reduction="none", label_smoothing=smoothing)
    for tokens in (4096, LENGTH):
        monkeypatch.setattr("mvar_models.networks.transformer._LOSS_CHUNK_TOKENS", tokens)
        found = model.token_losses(*batch, label_smoothing=smoothing)
        assert torch.allclose(found, expected, atol=1e-4)
        loss = model.loss(*batch, label_smoothing=smoothing)
        assert torch.allclose(loss, expected.mean(), atol=1e-4)


def test_losses_of_some_scales_are_divided_by_all_tokens(batch):
    model = tiny_mvar()
    parts = [model.loss(*batch, scales=range(scale, scale + 1)) for scale in range(3)]
    assert torch.allclose(sum(parts), model.loss(*batch), atol=1e-5)


@pytest.mark.parametrize("scales", [range(0, 4), range(1, 1), range(0, 3, 2), [0, 1], range(-1, 2)])
def test_wrong_scales_are_refused(batch, scales):
    with pytest.raises(ValueError, match="scales"):
        tiny_mvar()(*batch[:2], scales=scales)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda l, x, i: (l[:, None], x, i), r"labels.*\(3, 1\)"),
        (lambda l, x, i: (l, x[:, 1:], i), r"scale_inputs.*\(3, 20, 4\).*\(3, 19, 4\)"),
        (lambda l, x, i: (l, x, i[:, 1:]), r"indices.*\(3, 21\).*\(3, 20\)"),
        (lambda l, x, i: (l + 1, x, i), r"labels.*3.*\[1, 4, 2\]"),
        (lambda l, x, i: (l - 1, x, i), r"labels.*\[-1, 2, 0\]"),
    ],
)
def test_wrong_shapes_and_labels_are_refused(batch, change, match):
    with pytest.raises(ValueError, match=match):
        tiny_mvar().loss(*change(*batch))


def test_new_classes_keep_the_unconditional_one():
    model = tiny_mvar()
    unconditional = model.class_embedding.weight[-1].clone()
    model.replace_classes(5, [str(number) for number in range(5)])
    assert model.class_embedding.weight.shape == (6, 32)
    assert torch.equal(model.class_embedding.weight[-1], unconditional)
    assert model.config.num_classes == 5
    assert model.config.class_names == tuple("01234")
    with pytest.raises(ValueError, match=r"num_classes.*0"):
        model.replace_classes(0)
