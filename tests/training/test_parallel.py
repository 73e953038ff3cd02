"""Division of a batch, what cannot be divided, and two processes that give one process's gradients."""

import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from benchmarks.core.activations import example
from mvar_models.training.parallel import cannot_shard, global_norm, pieces

from fork_cases import finish_pair
from tiny_models import tiny_mvar
from training_cases import new_loop


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


BATCH = 4
KINDS = (("ddp", False), ("sharded", False), ("sharded", True))


def problem():
    model = tiny_mvar()
    torch.manual_seed(3)
    return model, example(model, BATCH, torch.device("cpu"))


class Loss(torch.nn.Module):
    """DDP wraps a forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *tensors):
        return self.model.loss(*tensors)


def distributed(model, kind):
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(Loss(model))
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    register_fsdp_forward_method(model, "loss")
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model.loss


def worker(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for kind, checkpointing in KINDS:
        model, tensors = problem()
        if checkpointing:
            model.gradient_checkpointing_enable()
        run = distributed(model, kind)  # held until after backward: DDP's hooks go with it
        loss = run(*(tensor[rank * BATCH // 2 : (rank + 1) * BATCH // 2] for tensor in tensors))
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        whole = {
            name: grad.full_tensor() if isinstance(grad, DTensor) else grad
            for name, grad in gradients.items()
        }
        loss = loss.detach()
        dist.all_reduce(loss)
        if rank == 0:
            torch.save({"loss": loss / 2, **whole}, folder / f"{kind}-{checkpointing}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(
    sys.platform == "win32" or not dist.is_available(), reason="needs torch.distributed with gloo"
)
@pytest.mark.skipif(bool(cannot_shard(torch.device("cpu"))), reason=str(cannot_shard(torch.device("cpu"))))
def test_two_processes_equal_one(tmp_path):
    model, tensors = problem()
    loss = model.loss(*tensors)
    loss.backward()
    finish_pair(lambda: worker(tmp_path))
    for kind, checkpointing in KINDS:
        found = torch.load(tmp_path / f"{kind}-{checkpointing}.pt", weights_only=True)
        torch.testing.assert_close(found.pop("loss"), loss.detach(), rtol=1e-6, atol=0)
        for name, parameter in model.named_parameters():
            where = f"{kind}, {name}: "
            torch.testing.assert_close(
                found.pop(name),
                parameter.grad,
                rtol=1e-4,
                atol=1e-6,
                msg=lambda text, where=where: where + text,
            )
        assert not found
