"""The pipeline that fits a checkpoint is found from the checkpoint or from the model."""

import pytest

from mvar_models import MVAR, VAR, MVARPipeline, VARPipeline
from mvar_models.pipeline import model_for, pipeline_for, pipeline_of

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
