"""The output object joins the codes of all batches."""

import torch

from mvar_models.pipeline.output import PipelineOutput
from mvar_models.sampling.sampler import SampleResult

from tiny_models import tiny_mvar


def test_batches_are_joined_in_order():
    config, device = tiny_mvar().config, torch.device("cpu")
    batches = [SampleResult(torch.full((n, 21), n), torch.full((n, 4, 4, 4), float(n)), None) for n in (2, 1)]
    output = PipelineOutput.of(["a", "b", "c"], batches, config, device)
    assert output.indices[:, 0].tolist() == output.latents[:, 0, 0, 0].tolist() == [2, 2, 1]
    assert output.images == ["a", "b", "c"] and output.scales is None


def test_no_batches_give_empty_tensors():
    output = PipelineOutput.of([], [], tiny_mvar().config, torch.device("cpu"))
    assert output.indices.shape == (0, 21) and output.latents.shape == (0, 4, 4, 4)
