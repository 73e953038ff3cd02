"""One VQVAE for several resolutions: the released file serves 256, 512 and 1024 px."""

import pytest
import torch

from mvar_models import VAR, VQVAE, MVARConfig, VARConfig, VARPipeline
from mvar_models.checkpoints.official import to_official
from mvar_models.config import SIDES_256, SIDES_512, SIDES_1024
from mvar_models.pipeline import fitted

from checkpoint_cases import official_file, small, small_vqvae


def test_pipelines_of_two_resolutions_share_one_vqvae():
    vqvae = small_vqvae()
    vqvae.set_sides(SIDES_256)
    other = fitted(vqvae, SIDES_1024)
    assert (
        vqvae.config.sides == SIDES_256 == vqvae.quantizer.sides
        and other.config.sides == SIDES_1024 == other.quantizer.sides
    )
    assert all(first is second for first, second in zip(vqvae.parameters(), other.parameters()))
    assert vqvae.quantizer.code_usage.shape[0] == 10 and other.quantizer.code_usage.shape[0] == 14
    assert fitted(vqvae, SIDES_256) is vqvae
    vqvae.set_sides((1, 2, 4))
    assert fitted(vqvae, SIDES_512) is vqvae, "a VQVAE of its own sides is left for the check to refuse"


def test_the_released_vqvae_serves_other_resolutions():
    """512 px takes the same file; only the sides change.

    Moved to a pyramid of another length, all of it still works.
    """
    vqvae = small_vqvae()
    vqvae.set_sides(SIDES_512)
    assert vqvae.config.resolution == 512 and vqvae.config.length == 2240
    vqvae.set_sides((1, 2, 4))
    codes = vqvae.encode(torch.zeros(1, 3, 64, 64))
    assert (
        codes.shape == (1, 21)
        and vqvae.decode(codes).shape == (1, 3, 64, 64)
        and vqvae.quantizer.code_usage.shape == (3, 24)
    )
    with pytest.raises(ValueError, match="does not fit"):
        VARPipeline(
            VAR(VARConfig(depth=1, width=32, num_heads=2, sides=SIDES_512, vocab_size=24, z_channels=4)),
            small_vqvae(),
        )
    with torch.device("meta"):
        model, released = VAR(VARConfig(depth=1, sides=SIDES_512)), VQVAE()
    assert MVARConfig().vocab_size == released.config.vocab_size
    with pytest.raises(ValueError, match="the VQVAE does not fit the model: sides"):
        VARPipeline(model, released)


def test_a_512_px_pipeline_takes_the_released_vqvae(tmp_path):
    small_vqvae().save_pretrained(tmp_path / "vae")
    model = small(VAR, sides=SIDES_512)
    path = official_file(tmp_path / "var_d36.pth", to_official(model, model.config))
    assert VARPipeline.from_pretrained(path, vqvae=tmp_path / "vae").vqvae.config.sides == SIDES_512
