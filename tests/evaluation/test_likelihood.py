"""Held-out likelihood against the model's own losses, for any batch size and number of processes."""

import numpy as np
import pytest
import torch

from mvar_models.distributed import Processes
from mvar_models.evaluation.likelihood import held_out_losses, per_scale

from tiny_models import tiny_mvar, tiny_vqvae

COUNT, LENGTH = 7, 21


class Examples:
    def __init__(self):
        rng = np.random.default_rng(0)
        self.labels = torch.from_numpy(rng.integers(0, 3, COUNT))
        self.indices = torch.from_numpy(rng.integers(0, 24, (COUNT, LENGTH)))

    def __len__(self):
        return COUNT

    def batch(self, members):
        return self.labels[members], self.indices[members]


@pytest.fixture(scope="module")
def expected():
    examples, model = Examples(), tiny_mvar()
    inputs = tiny_vqvae().quantizer.scale_inputs(examples.indices)
    with torch.no_grad():
        logits = model(examples.labels, inputs).double()
    return -logits.log_softmax(-1).gather(-1, examples.indices[..., None])[..., 0].mean(0)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
def test_losses_are_averaged_over_all_examples(expected, batch_size):
    quantizer = tiny_vqvae().quantizer
    found = held_out_losses(tiny_mvar().token_losses, quantizer, Examples(), batch_size=batch_size)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("world_size, batch_size", [(2, 2), (3, 2), (5, 1)])
def test_processes_share_the_examples(expected, world_size, batch_size):
    """Sums of all processes together are the whole; every process makes the same number of forward passes."""
    model, sums, passes = tiny_mvar(), [], []
    for rank in range(world_size):
        seen = []

        def losses(labels, inputs, indices, seen=seen):
            seen.append(len(labels))
            return model.token_losses(labels, inputs, indices)

        class Others(Processes):
            def total(self, values):
                sums.append(values.clone())
                return values

        held_out_losses(
            losses,
            tiny_vqvae().quantizer,
            Examples(),
            batch_size=batch_size,
            processes=Others(rank, world_size),
        )
        passes.append(len(seen))
        assert max(seen) <= batch_size, "also where a process has no example of its own"
    assert torch.allclose(sum(sums) / COUNT, expected, atol=1e-4)
    assert len(set(passes)) == 1


def test_autocast_runs_in_the_type_asked_for():
    types = []

    def losses(labels, inputs, indices):
        types.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return torch.zeros(indices.shape)

    for dtype in (None, torch.bfloat16):
        held_out_losses(losses, tiny_vqvae().quantizer, Examples(), dtype=dtype)
    assert types == [None, torch.bfloat16]


def test_values_are_averaged_by_scale():
    values = torch.cat([torch.full((side * side,), float(side)) for side in (1, 2, 4)])
    assert per_scale(values, tiny_mvar().pyramid) == [1, 2, 4]
