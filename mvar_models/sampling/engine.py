"""The loop over scales and the decoder as one CUDA graph, for pipelines that `compile()`.

At batch 1 a GPU waits for launches, not for arithmetic: ten scales of sixteen blocks are thousands of
kernels, which a graph launches at once. There is one per batch size, guidance and filters, and the most
recently used are kept, until a network changes in more than the values of its weights; labels and uniform
numbers are its inputs. What cannot be captured takes the usual loop, and the log says why, once per reason.
Both run the same kernels in the same order.

FlashInfer's samplers hold no seed per request and would replay the same numbers, so numbers stay an input.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mvar_kernels import Pyramid
from mvar_models.networks.layers import is_hooked, is_known
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.randomness import UniformNumbers, uniform_numbers
from mvar_models.sampling.sampler import Sampler, SampleResult, make_sampler, sample
from mvar_models.sampling.settings import SamplingSettings

logger = logging.getLogger("mvar_models")

# Captures cost seconds and their outputs stay allocated; working memory is shared by all of them.
_MOST_GRAPHS = 8
# Runs before a capture: kernels compile, libraries allocate their workspaces.
_WARM_UPS = 2
_SIMPLE = {bool, int, float, str, tuple, torch.dtype, Pyramid, type(None)}


class Engine:
    """Sample and decode batches, on a GPU by replaying graphs.

    Args:
        model: The transformer.
        vqvae: The VQVAE whose codes it predicts.
        most: Graphs kept; the one used longest ago goes first.
    """

    def __init__(self, model: ScaleTransformer, vqvae: VQVAE, most: int = _MOST_GRAPHS) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1 graph, got {most}")
        self.model, self.vqvae, self.most = model, vqvae, most
        # None where a capture failed, so that it is not tried again.
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()
        self._pool: tuple[int, int] | None = None
        self._captured_from: tuple[Any, ...] = ()
        self._logged: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the graphs, which belong to one process and one copy of the weights."""
        return {**vars(self), "_graphs": OrderedDict(), "_pool": None, "_captured_from": ()}

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        settings: SamplingSettings,
        **options: Any,
    ) -> SampleResult:
        """Sample one image per label and decode it; arguments and errors are those of `sample`.

        Returns:
            The result of `sample`, with `images`.
        """
        reason = self.reason_against(settings, labels.device, **options)
        if reason is not None:
            self._log(reason)
        elif len(generators) == len(labels):  # otherwise `sample` says so
            graph = self._graph_for(labels, settings)
            if graph is not None:
                return graph.replay(labels, uniform_numbers(generators, self.model.pyramid.length))
        return _sample_and_decode(self.model, self.vqvae, labels, generators, settings, **options)

    def reason_against(
        self,
        settings: SamplingSettings,
        device: torch.device,
        *,
        scales: range | None = None,
        keep_logits: bool = True,
        **hooks: Any,
    ) -> str | None:
        """Return in one line why a graph cannot sample with these arguments of `sample`, or None."""
        if device.type != "cuda":
            return f"graphs need a CUDA device, the model is on {device.type}"
        sampler = type(make_sampler(settings.sampler))
        if sampler is not Sampler:
            return f"{sampler.__name__} may do more than tensors show"
        for name, hook in hooks.items():
            if hook is not None and hook != ():
                return f"{name} runs Python at every scale"
        if torch.is_autocast_enabled(device.type):
            return "autocast keeps copies of the weights that a graph would not renew"
        if keep_logits or scales not in (None, range(len(self.model.config.sides))):
            return "a graph samples all scales and keeps no logits"
        for network in (self.model, self.vqvae):
            for name, module in network.named_modules():
                if is_hooked(module):
                    return f"{name or type(module).__name__} has a hook, which runs Python at every call"
                if not is_known(module):
                    return f"{name} is a {type(module).__name__}, which may do more than tensors show"
        return None

    def clear(self) -> None:
        """Forget all graphs and free their memory."""
        self._graphs.clear()
        self._pool = None

    def _log(self, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            logger.info("no CUDA graph: %s; the loop runs step by step", reason)

    def _graph_for(self, labels: Tensor, settings: SamplingSettings) -> _Graph | None:
        """Return the graph of this batch size and settings, captured if there is none; None if that fails."""
        made_from = self._made_from()
        if made_from != self._captured_from:
            self.clear()
            self._captured_from = made_from
        key = (len(labels), labels.device, settings)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        while len(self._graphs) >= self.most:
            self._graphs.popitem(last=False)
        graph = None
        try:
            graph = _Graph(self.model, self.vqvae, labels, settings, self._pool)
        except RuntimeError as error:  # an operator that waits for the host, or too little memory
            self._log(f"capture failed ({str(error).splitlines()[0]})")
        self._graphs[key] = graph
        return graph

    def _made_from(self) -> tuple[Any, ...]:
        """Return what a graph depends on besides the values of weights: addresses, and what Python read.

        References are weak, so that networks that were replaced can go.
        """
        found: list[Any] = [
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
        ]
        for module in (*self.model.modules(), *self.vqvae.modules()):
            found.append(weakref.ref(module))
            # Names with an underscore are nn.Module's own: hooks, which `reason_against` looks at, and parts.
            found += [pair for pair in vars(module).items() if type(pair[1]) in _SIMPLE and pair[0][0] != "_"]
            for each in (*module._parameters.values(), *module._buffers.values()):
                if each is not None:
                    found += each.data_ptr(), each.dtype, each.stride()
        return tuple(found)


class _Graph:
    """The captured loop of one batch size and settings; replays take turns, as they share memory."""

    def __init__(
        self,
        model: ScaleTransformer,
        vqvae: VQVAE,
        labels: Tensor,
        settings: SamplingSettings,
        pool: tuple[int, int],
    ) -> None:
        self.labels = labels.clone()
        self.numbers = torch.zeros(
            len(labels), model.pyramid.length, dtype=torch.float32, device=labels.device
        )

        def run() -> SampleResult:
            uniform = UniformNumbers.of_tensor(self.numbers, model.pyramid)
            return _sample_and_decode(model, vqvae, self.labels, uniform, settings, keep_logits=False)

        with torch.cuda.device(labels.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):  # type: ignore[arg-type]  # a private type of torch's
                self.result = run()

    def replay(self, labels: Tensor, numbers: Tensor) -> SampleResult:
        self.labels.copy_(labels)
        self.numbers.copy_(numbers)
        self.graph.replay()
        result = self.result
        assert result.images is not None
        # The next replay overwrites the outputs.
        f_hats = tuple(torch.stack(result.f_hats))  # one kernel, and a copy
        return SampleResult(result.indices.clone(), f_hats, None, result.images.clone())


def _sample_and_decode(
    model: ScaleTransformer,
    vqvae: VQVAE,
    labels: Tensor,
    generators: Sequence[torch.Generator] | UniformNumbers,
    settings: SamplingSettings,
    **options: Any,
) -> SampleResult:
    """Sample and decode: what a graph holds, and what runs without one."""
    result = sample(model, vqvae.quantizer, labels, generators, settings, **options)
    return replace(result, images=torch.cat(list(vqvae.decode_slices(result.f_hat))))
