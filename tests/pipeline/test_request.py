"""Arguments of a call become one value per image, and batches with further arguments of each."""

import numpy as np
import pytest
import torch

from mvar_models.pipeline.request import Request, as_sequence, sample_batches, sources_of

from tiny_models import tiny_mvar, tiny_vqvae


def test_one_label_may_come_alone():
    assert as_sequence("three") == ["three"]
    assert as_sequence(np.int64(3)) == [3]
    assert as_sequence([3, "three"]) == [3, "three"]


def test_seeds_are_consecutive_or_given():
    assert sources_of(np.int64(5), None, 3) == [5, 6, 7]
    assert sources_of(np.array([3, 1]), None, 2) == [3, 1]
    with pytest.raises(ValueError, match=r"seed.*\(3\), got 2"):
        sources_of([1, 2], None, 3)


def test_one_generator_seeds_every_image():
    first = sources_of(0, torch.Generator().manual_seed(1), 3)
    assert len(set(first)) == 3
    assert sources_of(0, torch.Generator().manual_seed(1), 5)[:3] == first


@pytest.mark.parametrize(
    "seed, generator, error, match",
    [
        (3, torch.Generator(), ValueError, r"seed.*generator.*seed=3"),
        ([1], torch.Generator(), ValueError, r"seed.*generator"),
        (0, [torch.Generator()], ValueError, r"generator.*\(2\), got 1"),
        (0, [1, 2], TypeError, r"generator.*got 1"),
    ],
)
def test_generators_that_do_not_fit(seed, generator, error, match):
    with pytest.raises(error, match=match):
        sources_of(seed, generator, 2)


def test_batches_come_in_order_with_their_own_arguments():
    model, quantizer = tiny_mvar(), tiny_vqvae().quantizer
    seen, prepared = [], []

    def prepare(images):
        prepared.append(images)
        return {"f_hat": torch.zeros(len(range(5)[images]), 4, 4, 4)}

    request = Request.of(
        model, [0, 1, 2, 1, 0], seed=3, batch_size=2, batch_invariant=False,
        on_scale=lambda scale, f_hat: seen.append(scale),
    )  # fmt: skip
    options = {"scales": range(1, 3), "prepare": prepare}
    drawn = list(sample_batches(model, quantizer, request, **options))
    assert [tuple(batch.indices.shape) for batch in drawn] == [(2, 20), (2, 20), (1, 20)]
    assert [range(5)[images] for images in prepared] == [range(0, 2), range(2, 4), range(4, 5)]
    assert seen == [1, 2] * 3
    alone = Request.of(model, [1], seed=6)
    start = {"f_hat": torch.zeros(1, 4, 4, 4)}
    (last,) = sample_batches(model, quantizer, alone, scales=range(1, 3), prepare=lambda images: start)
    assert torch.equal(last.indices[0], drawn[1].indices[1])


def test_a_callback_may_replace_f_hat():
    model, quantizer = tiny_mvar(), tiny_vqvae().quantizer
    request = Request.of(model, [1], on_scale=lambda scale, f_hat: torch.zeros_like(f_hat))
    (drawn,) = sample_batches(model, quantizer, request)
    assert not drawn.f_hat.any()
