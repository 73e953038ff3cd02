"""Division of a batch, and what cannot be divided."""

import pytest
import torch

from mvar_models.training.parallel import Parallel
from mvar_models.training.processes import Processes

from training_cases import new_loop


def test_a_task_that_cannot_be_split_says_so(tmp_path):
    task = new_loop(tmp_path / "run").task
    task.compute = None
    with pytest.raises(ValueError, match="runs in one process; start it without torchrun and --fsdp"):
        Parallel(task, Processes(0, 2, torch.device("cpu")))


def test_more_pieces_than_images(tmp_path):
    with pytest.raises(ValueError, match="batch_size 2 cannot be shared by 3"):
        new_loop(tmp_path / "run", batch_size=2, accumulate=3)
