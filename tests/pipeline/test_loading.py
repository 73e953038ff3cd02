"""A VQVAE is fitted to the model's pyramid only where its weights serve it."""

import pytest

from mvar_models.config import RELEASED_SIDES
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.loading import fitted, opened

from tiny_models import tiny_vqvae


def test_a_released_vqvae_takes_the_sides_of_the_model():
    config = tiny_vqvae().config.replace(
        sides=RELEASED_SIDES[256], channel_multipliers=(1, 1, 1, 1, 1), residual_convolution_of_scale=None
    )
    vqvae = VQVAE(config)
    other = fitted(vqvae, RELEASED_SIDES[512])
    assert other.config.sides == RELEASED_SIDES[512] and vqvae.config.sides == RELEASED_SIDES[256]
    assert next(other.parameters()) is next(vqvae.parameters())


@pytest.mark.parametrize("sides", [(1, 2, 4), (1, 2, 3)])
def test_another_vqvae_stays_as_it_is(sides):
    vqvae = tiny_vqvae()
    assert fitted(vqvae, sides) is vqvae


def test_where_a_checkpoint_is_is_taken_from_the_options(tmp_path):
    tiny_vqvae().save_pretrained(tmp_path / "vqvae")
    options = {"subfolder": "vqvae", "device": "cpu"}
    assert opened(tmp_path, options).kind() == "vqvae"
    assert options == {"device": "cpu"}
