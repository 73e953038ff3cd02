"""The pipeline that fits a checkpoint, and the VQVAE that fits a model."""

import pytest

from mvar_models import MVAR, VAR, MVARPipeline, VARPipeline
from mvar_models.config import RELEASED_SIDES
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import fitted, model_for, pipeline_for, pipeline_of
from mvar_models.pipeline.base import opened

from tiny_models import tiny_mvar, tiny_var, tiny_vqvae


@pytest.mark.parametrize(
    "make, network, pipeline", [(tiny_var, VAR, VARPipeline), (tiny_mvar, MVAR, MVARPipeline)]
)
def test_the_architecture_decides(make, network, pipeline, tmp_path):
    joined = pipeline_of(make(), tiny_vqvae())
    assert type(joined) is pipeline
    joined.save_pretrained(tmp_path)
    assert type(pipeline_for(tmp_path)) is pipeline
    assert type(model_for(tmp_path)) is network


def test_a_vqvae_draws_nothing():
    with pytest.raises(ValueError, match="vae-digits"):
        pipeline_for("vae-digits")


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
