"""Division of a batch, and what cannot be divided."""

import pytest
import torch

from mvar_models.distributed import Processes
from mvar_models.training.parallel import Parallel, global_norm, pieces

from training_cases import new_loop


def test_a_task_that_cannot_be_split_says_so(tmp_path):
    task = new_loop(tmp_path / "run").task
    task.compute = None
    with pytest.raises(ValueError, match=r"one process; .*--fsdp"):
        Parallel(task, Processes(0, 2, torch.device("cpu")))


def test_more_pieces_than_images(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size 2 .*3"):
        new_loop(tmp_path / "run", batch_size=2, accumulate=3)


@pytest.mark.parametrize("size, count", [(7, 3), (6, 6), (32, 5), (1, 1)])
def test_pieces_cover_the_batch_evenly(size, count):
    parts = pieces(size, count)
    assert [row for part in parts for row in range(size)[part]] == list(range(size))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_the_norm_is_over_all_gradients(seed):
    model = torch.nn.Linear(3, 2)
    model(torch.randn(4, 3)).square().sum().backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert global_norm(model).item() == pytest.approx(flat.norm().item(), rel=1e-6)


def test_without_fsdp_the_model_is_plain_already(tmp_path):
    loop = new_loop(tmp_path / "run")
    assert loop.parallel.plain_model() is loop.task.model
