"""The commands that draw take the same options."""

import pytest

from mvar_models.cli.edit import edit
from mvar_models.cli.sample import sample
from mvar_models.sampling.sampler import SAMPLERS

SHARED = {
    "model",
    "vqvae",
    "arch",
    "dtype",
    "device",
    "guidance_scale",
    "guidance_schedule",
    "top_k",
    "top_p",
    "sampler",
    "preset",
}


@pytest.mark.parametrize("command", [sample, edit])
def test_shared_options(command):
    options = {parameter.name: parameter for parameter in command.params}
    assert SHARED <= set(options)
    assert list(options["sampler"].type.choices) == list(SAMPLERS)
