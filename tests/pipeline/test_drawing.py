"""The batches of a request: labels, generators and further arguments of each."""

import torch

from mvar_models.pipeline.drawing import draw_batches
from mvar_models.pipeline.options import Request

from tiny_models import tiny_mvar, tiny_vqvae


def test_batches_come_in_order_with_their_own_arguments():
    model, quantizer = tiny_mvar(), tiny_vqvae().quantizer
    seen, prepared = [], []

    def prepare(images):
        prepared.append(images)
        return {"f_hat": torch.zeros(len(range(5)[images]), 4, 4, 4)}

    request = Request.of(
        model, [0, 1, 2, 1, 0], seed=3, batch_size=2, batch_invariant=False,
        on_scale=lambda scale, f_hat: seen.append(("user", scale)),
    )  # fmt: skip

    def after_scale(scale, f_hat):
        seen.append(("ours", scale))

    options = {"scales": range(1, 3), "prepare": prepare, "after_scale": after_scale}
    drawn = list(draw_batches(model, quantizer, request, **options))
    assert [tuple(batch.indices.shape) for batch in drawn] == [(2, 20), (2, 20), (1, 20)]
    assert [range(5)[images] for images in prepared] == [range(0, 2), range(2, 4), range(4, 5)]
    assert seen == [("ours", 1), ("user", 1), ("ours", 2), ("user", 2)] * 3
    alone = Request.of(model, [1], seed=6)
    start = {"f_hat": torch.zeros(1, 4, 4, 4)}
    (last,) = draw_batches(model, quantizer, alone, scales=range(1, 3), prepare=lambda images: start)
    assert torch.equal(last.indices[0], drawn[1].indices[1])


def test_a_callback_may_replace_f_hat():
    model, quantizer = tiny_mvar(), tiny_vqvae().quantizer
    request = Request.of(model, [1], on_scale=lambda scale, f_hat: torch.zeros_like(f_hat))
    (drawn,) = draw_batches(model, quantizer, request)
    assert not drawn.f_hat.any()
