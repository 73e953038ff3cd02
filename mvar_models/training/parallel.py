"""One model in several processes: whole in each (DistributedDataParallel), or in shards (fully_shard, FSDP2)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mvar_models.training.processes import Processes, whole
from mvar_models.training.task import Task

# Renamed in torch 2.13. The only buffers are tables that never change.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class Parallel:
    """Wraps a task's `compute` for the processes of the run; with one process and no FSDP it changes nothing.

    Gradients come out averaged over processes, so each one's loss is multiplied by `world_size` where losses of parts should add up.
    """

    def __init__(
        self,
        task: Task,
        processes: Processes,
        *,
        fsdp: bool = False,
        compiled: bool = False,
        unused_parameters: bool = False,
    ) -> None:
        compute: Any = task.compute
        if compute is None and (fsdp or not processes.alone):
            raise ValueError(
                "this kind of training runs in one process; start it without torchrun and --fsdp"
            )
        if fsdp and (reason := cannot_shard(processes.device)):
            raise ValueError(reason)
        self.task = task
        self.processes = processes
        self.sharded = fsdp
        self._wrapped: Any = None
        if compiled:
            for module in task.compiled_modules():
                module.compile()
        if fsdp:
            mesh = init_device_mesh(processes.device.type, (processes.world_size,))
            for module in task.sharded_modules():
                fully_shard(module, mesh=mesh)
            self._wrapped = fully_shard(compute, mesh=mesh)
        elif not processes.alone:
            self._wrapped = task.compute = DistributedDataParallel(
                compute,
                device_ids=[processes.device] if processes.device.type == "cuda" else None,
                find_unused_parameters=unused_parameters,
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,
            )

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch; gradients travel between processes after the last one only."""
        if self.sharded:
            self._wrapped.set_requires_gradient_sync(last)
        with (
            self._wrapped.no_sync()
            if self._wrapped is not None and not self.sharded and not last
            else nullcontext()
        ):
            yield

    def reshard(self) -> None:
        """After passes without backward, which leave the outermost weights whole."""
        if self.sharded:
            self._wrapped.reshard()

    @contextmanager
    def plain_model(self) -> Iterator[None]:
        """Inside, in the first process, `task.model` is an ordinary module with all the weights; all processes must enter."""
        if not self.sharded:
            yield
            return
        model, state = self.task.model, self._whole_state()
        if self.processes.first:
            with torch.device("meta"):
                plain = type(model)(copy.deepcopy(model.config))
            plain.load_state_dict(state, strict=True, assign=True)
            for name, buffer in model.named_buffers():
                if name not in state:
                    module, _, own = name.rpartition(".")
                    plain.get_submodule(module).register_buffer(own, buffer, persistent=False)
            self.task.model = plain.eval()
        try:
            yield
        finally:
            self.task.model = model

    def _whole_state(self) -> dict[str, Tensor]:
        """The state dict gathered in the first process, tensor by tensor; empty elsewhere."""
        state = {}
        for name, tensor in self.task.model.state_dict().items():
            gathered = whole(tensor.detach())
            if self.processes.first:
                state[name] = gathered
        return state


def cannot_shard(device: torch.device) -> str | None:
    """Why `fully_shard` does not run on this device; None where it does."""
    if device.type == "cpu" and not hasattr(torch.cpu.current_stream(), "record_event"):
        return f"fully_shard of torch {torch.__version__} does not run on a CPU; leave out --fsdp, or take a newer torch"
    return None


def global_norm(model: nn.Module) -> Tensor:
    """2-norm of all gradients, over all shards: a plain scalar tensor."""
    return whole(
        torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        )
    )


def pieces(size: int, count: int) -> list[slice]:
    """A batch cut into `count` runs of rows that differ by one at most.

    Raises:
        ValueError: fewer rows than pieces.
    """
    if size < count:
        raise ValueError(
            f"batch_size {size} cannot be shared by {count} (processes x accumulate); raise it or lower them"
        )
    return [slice(index * size // count, (index + 1) * size // count) for index in range(count)]
