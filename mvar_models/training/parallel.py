"""One model in several processes: a whole copy in each (DDP), or shards (fully_shard, FSDP2)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mvar_models.devices import without_values
from mvar_models.distributed import Processes
from mvar_models.training.task import Task

# torch 2.13 renamed the argument. All buffers are constant tables, so broadcasting them is waste.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class Parallel:
    """Wraps a task's `compute` for the processes of the run; with one process and no FSDP it changes nothing.

    DDP and FSDP average gradients over processes. Multiply each process's loss by `world_size` to get a sum.

    Args:
        task: The task, whose `compute` is replaced under DDP and sharded in place under FSDP.
        processes: The processes of the run.
        fsdp: Shard weights, gradients and optimizer state.
        compiled: Apply torch.compile to `task.compiled_modules()`.

    Raises:
        ValueError: `fully_shard` does not run on this device.
    """

    def __init__(
        self, task: Task, processes: Processes, *, fsdp: bool = False, compiled: bool = False
    ) -> None:
        if fsdp and (reason := cannot_shard(processes.device)):
            raise ValueError(reason)
        self.task = task
        self.processes = processes
        self.sharded = fsdp
        self._wrapped: Any = None
        if compiled:
            for module in task.compiled_modules():
                module.compile()
            # Each block is a graph, which DDP overlaps as it is; split into buckets it fails to run.
            torch._dynamo.config.optimize_ddp = False
        if fsdp:
            mesh = init_device_mesh(processes.device.type, (processes.world_size,))
            for module in task.sharded_modules():
                fully_shard(module, mesh=mesh)
            self._wrapped = fully_shard(task.compute, mesh=mesh)
        elif not processes.alone:
            self._wrapped = task.compute = DistributedDataParallel(
                task.compute,
                device_ids=[processes.device] if processes.device.type == "cuda" else None,
                find_unused_parameters=task.unused_parameters(),
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,
            )

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Run one micro-batch inside; gradients are exchanged after the `last` one only."""
        if self.sharded:
            self._wrapped.set_requires_gradient_sync(last)
        silent = self._wrapped is not None and not self.sharded and not last
        with self._wrapped.no_sync() if silent else nullcontext():
            yield

    def reshard(self) -> None:
        """Free the outermost weights, which FSDP leaves gathered after a forward without a backward."""
        if self.sharded:
            self._wrapped.reshard()

    def plain_model(self) -> Any:
        """Return on rank 0 an ordinary module with all weights; every process must call it.

        Without FSDP that is `task.model` itself. With FSDP rank 0 gets a new module on the CPU, as the whole
        may not fit on the device next to the optimizer's shards; the other ranks get their sharded model.
        """
        model: Any = self.task.model
        if not self.sharded:
            return model
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not self.processes.first:
            return model
        with without_values():
            plain = type(model)(copy.deepcopy(model.config))
        plain.load_state_dict(state, strict=True, assign=True)
        for name, buffer in model.named_buffers():
            if name not in state:  # a table that no state dict holds, which is on "meta" so far
                parent, _, own = name.rpartition(".")
                plain.get_submodule(parent).register_buffer(own, buffer.cpu(), persistent=False)
        return plain.eval()


def cannot_shard(device: torch.device) -> str | None:
    """Return why `fully_shard` does not run on this device, or None where it does."""
    if device.type == "cpu" and not hasattr(torch.cpu.current_stream(), "record_event"):
        return (
            f"fully_shard of torch {torch.__version__} does not run on a CPU; "
            "leave out --fsdp, or take a newer torch"
        )
    return None


def global_norm(model: nn.Module) -> Tensor:
    """Return the 2-norm of all gradients over all shards, as a plain scalar tensor."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def pieces(size: int, count: int) -> list[slice]:
    """Cut a batch of `size` rows into `count` consecutive slices whose lengths differ by at most one.

    Raises:
        ValueError: there are fewer rows than pieces.
    """
    if size < count:
        raise ValueError(
            f"batch_size {size} cannot be shared by {count} (processes x accumulate); raise it or lower them"
        )
    return [slice(index * size // count, (index + 1) * size // count) for index in range(count)]
