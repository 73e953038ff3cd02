"""The output decodes batch by batch in the type asked for, and joins the codes of all batches."""

import numpy as np
import pytest
import torch

from mvar_models import MVARPipeline
from mvar_models.networks import vqvae
from mvar_models.pipeline.output import PipelineOutput, check_output_type, decode, join
from mvar_models.sampling.sampler import SampleResult

from tiny_models import tiny_mvar, tiny_vqvae


def test_many_images_are_decoded_a_few_at_a_time(monkeypatch):
    """Peak memory of decoding does not grow with the batch; the pieces join in order."""
    pipeline, counts = MVARPipeline(tiny_mvar(), tiny_vqvae()), []
    decode = pipeline.vqvae.decode_latents
    monkeypatch.setattr(
        pipeline.vqvae, "decode_latents", lambda f_hat: counts.append(len(f_hat)) or decode(f_hat)
    )
    expected = pipeline([0, 1, 2, 0, 1], seed=1, output_type="pt", batch_invariant=False).images
    monkeypatch.setattr(vqvae, "_PIXELS_AT_A_TIME", 2 * 16 * 16)
    assert torch.allclose(
        pipeline([0, 1, 2, 0, 1], seed=1, output_type="pt", batch_invariant=False).images, expected, atol=1e-5
    )
    assert counts == [5, 2, 2, 1]


@torch.no_grad()
def test_types_of_one_latent_agree():
    vqvae = tiny_vqvae()
    f_hat = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    array, tensor = decode(vqvae, f_hat, "np"), decode(vqvae, f_hat, "pt")
    assert array.shape == (2, 16, 16, 3) and array.dtype == np.uint8
    assert tensor.shape == (2, 3, 16, 16) and tensor.dtype == torch.float32
    assert np.array_equal((tensor * 255).round().byte().permute(0, 2, 3, 1).numpy(), array)
    assert [image.size for image in join(vqvae, [array], "pil")] == [(16, 16)] * 2


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match=r"output_type.*'jpeg'"):
        check_output_type("jpeg")


def test_batches_are_joined_in_order():
    batches = [
        SampleResult(
            torch.full((n, 21), n), (torch.zeros(n, 4, 4, 4), torch.full((n, 4, 4, 4), float(n))), None
        )
        for n in (2, 1)
    ]
    output = PipelineOutput.of(batches, tiny_vqvae(), "latent")
    assert output.indices[:, 0].tolist() == output.latents[:, 0, 0, 0].tolist() == [2, 2, 1]
    assert torch.equal(output.images, output.latents)
    assert [scale[:, 0, 0, 0].tolist() for scale in output.scales] == [[0, 0, 0], [2, 2, 1]]


def test_no_batches_give_empty_tensors():
    output = PipelineOutput.of([], tiny_vqvae(), "pil")
    assert output.indices.shape == (0, 21) and output.latents.shape == (0, 4, 4, 4)
    assert output.images == [] and output.scales == [[], [], []]
