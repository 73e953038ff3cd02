"""Export a pipeline to ONNX, and sample from the export with onnxruntime.

Four graphs: a step of the transformer, the quantizer's two maps, the decoder. A step takes the places of its
tokens and who attends to whom as inputs, so that one graph serves every scale and weights are stored once.
It has no cache: VAR computes the coarser scales again at every step, MVAR has none to compute.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mvar_models.config import VQVAEConfig
from mvar_models.networks.block import SelfAttention
from mvar_models.networks.layers import biased, is_known
from mvar_models.networks.state import BlockContext
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VARTransformer
from mvar_models.optional import require
from mvar_models.pipeline.base import Pipeline
from mvar_models.records import read_record
from mvar_models.registry import architecture

STORED = ("float32", "float16", "int8")
_CONFIG, _TABLES = "config.json", "tables.safetensors"
_GRAPHS = ("step", "add", "next", "decode")
# Smaller tensors, such as biases, stay float32.
_LEAST_STORED = 1024
_OPSET = 20
_zeros = functools.partial(torch.zeros, dtype=torch.float32, device="cpu")


class _MaskedAttention(nn.Module):
    """The attention of a block in standard operators; its neighborhood is a mask (n, n), True where seen."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden: Tensor, context: BlockContext) -> Tensor:
        attention, mask = self.attention, context.neighborhood
        qkv = biased(attention.qkv, hidden, attention.bias()).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = qkv.transpose(1, 3).unbind(2)  # (B, H, n, D)
        factor = attention.logit_scale()
        if factor is not None:
            query, key = F.normalize(query, dim=-1) * factor[:, None, None], F.normalize(key, dim=-1)
        out = F.scaled_dot_product_attention(query, key, value, mask, scale=attention.scale)  # type: ignore[arg-type]
        return attention.proj(out.transpose(1, 2).flatten(2))


class _Step(nn.Module):
    """Logits (B, n, V) of labels (B,), inputs (B, n, z), places (n,) among all tokens, and mask (n, n).

    The input of place 0 is the class.
    """

    def __init__(self, model: VARTransformer) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu().eval()
        for block in self.model.blocks:
            block.attention = _MaskedAttention(block.attention)  # type: ignore[arg-type]

    def forward(self, labels: Tensor, inputs: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        model = self.model
        of_class = model.class_embedding(labels)
        first, others = of_class[:, None] + model.start_position, model.token_embedding(inputs)
        where = model.positions[places] + model.scale_embedding(model.scale_of_token[places])
        hidden = torch.where((places == 0)[None, :, None], first, others) + where
        context: Any = BlockContext(mask, "")  # type: ignore[arg-type]  # `_MaskedAttention` reads it
        condition = model._condition(of_class)
        for block in model.blocks:
            hidden = block(hidden, condition, None, context)
        return model.logits(hidden, of_class)


class _Add(nn.Module):
    """What vectors (B, n, z) of a scale add to f_hat: (B, z, h, h)."""

    def __init__(self, convolutions: nn.ModuleList) -> None:
        super().__init__()
        each: Any = list(convolutions)
        self.weight = nn.Parameter(torch.stack([phi.weight.detach().float().cpu() for phi in each]))
        self.bias = nn.Parameter(torch.stack([phi.bias.detach().float().cpu() for phi in each]))
        self.ratio = each[0].ratio

    def forward(self, vectors: Tensor, resize: Tensor, convolution: Tensor) -> Tensor:
        """`resize` (n, h h) is bicubic; `convolution` () chooses the phi of the scale."""
        side = round(resize.shape[1] ** 0.5)
        features = (vectors.transpose(1, 2) @ resize).unflatten(2, (side, side))
        weight, bias = self.weight[convolution], self.bias[convolution]
        return features * (1 - self.ratio) + F.conv2d(features, weight, bias, padding=1) * self.ratio


class _Next(nn.Module):
    """The inputs (B, n, z) of a scale: f_hat (B, z, h, h) resized by (h h, n)."""

    def forward(self, f_hat: Tensor, resize: Tensor) -> Tensor:
        return (f_hat.flatten(2) @ resize).transpose(1, 2)


class _Decode(nn.Module):
    """Images (B, 3, R, R) in [-1, 1] of f_hat (B, z, h, h)."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.vqvae = copy.deepcopy(pipeline.vqvae).float().cpu().eval()
        del self.vqvae.encoder, self.vqvae.quantizer

    def forward(self, f_hat: Tensor) -> Tensor:
        return self.vqvae.decode_latents(f_hat)


def export_onnx(pipeline: Pipeline, folder: str | os.PathLike[str], weights: str = "float32") -> Path:
    """Write a pipeline as ONNX graphs with dynamic batch and tokens, for `OnnxPipeline`.

    Args:
        pipeline: VAR or MVAR.
        folder: A folder that does not exist yet.
        weights: How weights are stored: "float32", "float16", or "int8" with a factor per row. Graphs compute
            in float32.

    Raises:
        FileExistsError: the folder exists.
        ImportError: the extra `onnx` is not installed.
        RuntimeError: this PyTorch cannot export it (2.6 cannot).
        ValueError: another architecture, unknown `weights`, or adapters that are not merged.
    """
    require("onnxscript", "onnx")
    target, model, vqvae = Path(folder), pipeline.model, pipeline.vqvae
    if weights not in STORED:
        raise ValueError(f"weights must be one of {', '.join(STORED)}, got {weights!r}")
    if not isinstance(model, VARTransformer):
        raise ValueError(f"ONNX export takes VAR and MVAR, got {type(model).__name__}")
    foreign = next((each for each in (*model.modules(), *vqvae.modules()) if not is_known(each)), None)
    if foreign is not None:
        raise ValueError(
            f"the network has a {type(foreign).__name__} of another package; merge adapters first"
        )
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another folder")
    sides, z = model.config.sides, model.config.z_channels
    h, tokens, batch = sides[-1], torch.export.Dim("tokens", min=1), torch.export.Dim("batch", min=1)
    f_hat, vectors = _zeros(2, z, h, h), _zeros(2, 3, z)
    mask, whole = _zeros(3, 3).bool(), _zeros(3).long()
    of_step = _zeros(2).long(), vectors, whole, mask
    of_add = vectors, _zeros(3, h * h), _zeros(1)[0].long()
    per_image, per_token = {0: batch}, {0: batch, 1: tokens}
    graphs: dict[str, tuple[nn.Module, tuple[Tensor, ...], tuple[Any, ...], list[str]]] = {
        "step": (
            _Step(model), of_step, (per_image, per_token, {0: tokens}, {0: tokens, 1: tokens}),
            ["labels", "inputs", "places", "mask"],
        ),
        "add": (
            _Add(vqvae.quantizer.residual_convolutions), of_add, (per_token, {0: tokens}, None),
            ["vectors", "resize", "convolution"],
        ),
        "next": (_Next(), (f_hat, _zeros(h * h, 3)), (per_image, {1: tokens}), ["f_hat", "resize"]),
        "decode": (_Decode(pipeline), (f_hat,), (per_image,), ["f_hat"]),
    }  # fmt: skip
    temporary = target.with_name(f".{target.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, (module, inputs, dynamic, names) in graphs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, of its own calls
            try:
                program = torch.onnx.export(
                    module.eval(), inputs, dynamo=True, dynamic_shapes=dynamic, input_names=names,
                    output_names=["out"], opset_version=_OPSET, verbose=False,
                )  # fmt: skip
            except torch.onnx.OnnxExporterError as error:
                shutil.rmtree(temporary)
                message = f"PyTorch {torch.__version__} cannot export the graph {name!r}; 2.13 can"
                raise RuntimeError(message) from error
        assert program is not None
        program.optimize()
        file = temporary / f"{name}.onnx"
        program.save(str(file))
        if weights != "float32":
            _store(file, weights)
    save_file(_tables(pipeline), temporary / _TABLES)
    configs = {"model": model.config.to_dict(), "vqvae": vqvae.config.to_dict()}
    (temporary / _CONFIG).write_text(json.dumps(configs, indent=2) + "\n")
    os.rename(temporary, target)
    return target


def _tables(pipeline: Pipeline) -> dict[str, Tensor]:
    """Return the codebook (V, z), the mask (L, L) of all tokens, and per scale how f_hat is resized."""
    model, quantizer = pipeline.model, pipeline.vqvae.quantizer
    sides = model.config.sides
    full = sides[-1]
    tables = {
        "codebook": quantizer.code_vectors().detach().float().cpu().contiguous(),
        "mask": model.neighborhood(range(len(sides))).mask().to(torch.uint8),
    }
    for scale, side in enumerate(sides):
        tables[f"up.{scale}"] = _resize(side, full, "bicubic")
        tables[f"down.{scale}"] = _resize(full, side, "area")
    return tables


def _resize(old: int, new: int, mode: str) -> Tensor:
    """Return the matrix (old old, new new) that resizes a grid."""
    grids = torch.eye(old * old, dtype=torch.float32, device="cpu").view(-1, 1, old, old)
    return grids.flatten(1) if old == new else F.interpolate(grids, (new, new), mode=mode).flatten(1)


def _store(file: Path, weights: str) -> None:
    """Store the large weights of a graph in half precision or as int8, each before a node that widens it."""
    onnx = require("onnx", "onnx")
    program, nodes = onnx.load(str(file)), []
    for tensor in program.graph.initializer:
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _LEAST_STORED or values.ndim < 2:
            continue
        stored, more = f"{name}.stored", [f"{name}.factor"]
        if weights == "float16":
            nodes.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
            continue
        rows = values.reshape(len(values), -1)
        factor = np.maximum(np.abs(rows).max(1) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        rounded = np.rint(rows / factor[:, None]).astype(np.int8).reshape(values.shape)
        nodes.append(onnx.helper.make_node("DequantizeLinear", [stored, *more], [name], axis=0))
        tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, stored))
        program.graph.initializer.append(onnx.numpy_helper.from_array(factor, *more))
    others = list(program.graph.node)
    del program.graph.node[:]
    program.graph.node.extend([*nodes, *others])
    onnx.save(program, str(file))


@dataclass
class _State:
    """State of a batch between two scales: labels, and the inputs so far where coarser scales count."""

    class_embedding: Tensor
    carries: bool
    inputs: list[Tensor] = field(default_factory=list)
    constants: None = None

    def first(self, rows: int) -> _State:
        return _State(self.class_embedding[:rows], self.carries)


class _Part:
    """Graphs in the place of a network."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, config: Any, run: Callable[..., Tensor], tables: dict[str, Tensor]) -> None:
        self.config, self._run, self._tables = config, run, tables

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"an ONNX export has no {name}; load the checkpoint itself for it")


class _Model(_Part):
    """The transformer, for `sample`."""

    check_scales = ScaleTransformer.check_scales
    new_guided_state = ScaleTransformer.new_guided_state

    def __init__(self, config: Any, run: Callable[..., Tensor], tables: dict[str, Tensor]) -> None:
        super().__init__(config, run, tables)
        network = architecture(config.model_type).network_class()
        self.skips_guidance_at, self.pyramid = network.skips_guidance_at, config.pyramid()
        # Whether a token of the second scale sees the first.
        self._carries = bool(len(config.sides) > 1 and tables["mask"][1, 0])

    def new_state(self, labels: Tensor) -> _State:
        return _State(labels, self._carries)

    def step(self, state: _State, inputs: Tensor, scale: int) -> Tensor:
        """Return the logits (B, n, V) of a scale; see `ScaleTransformer.step`."""
        labels, tokens = state.class_embedding, self.pyramid.scale_slice(scale)
        if scale == 0:
            inputs = _zeros(len(labels), 1, self.config.z_channels)
        count = inputs.shape[1]
        if state.carries:
            state.inputs.append(inputs)
            inputs, tokens = torch.cat(state.inputs, dim=1), slice(0, tokens.stop)
        places, mask = (
            torch.arange(tokens.start, tokens.stop, device="cpu"),
            self._tables["mask"][tokens, tokens].bool(),
        )
        return self._run("step", labels=labels, inputs=inputs, places=places, mask=mask)[:, -count:]

    def logits(self, hidden: Tensor, class_embedding: Tensor, rows: slice, constants: None) -> Tensor:
        return hidden[rows]


class _Quantizer(_Part):
    """The quantizer, for `sample`."""

    def code_vectors(self) -> Tensor:
        return self._tables["codebook"]

    def codebook(self, codes: Tensor) -> Tensor:
        return self._tables["codebook"][codes]

    def contribution(self, codes: Tensor, scale: int) -> Tensor:
        return self.contribution_of_vectors(self.codebook(codes), scale)

    def contribution_of_vectors(self, vectors: Tensor, scale: int) -> Tensor:
        convolution = torch.tensor(self.config.residual_convolution_of_scale[scale], device="cpu")
        return self._run("add", vectors=vectors, resize=self._tables[f"up.{scale}"], convolution=convolution)

    def next_input(self, f_hat: Tensor, scale: int) -> Tensor:
        return self._run("next", f_hat=f_hat, resize=self._tables[f"down.{scale}"])


class _VQVAE(_Part):
    """The decoder, for outputs."""

    def decode_slices(self, f_hat: Tensor) -> Iterator[Tensor]:
        for each in f_hat.split(1):
            yield self._run("decode", f_hat=each)


class OnnxPipeline(Pipeline):
    """Sample from an export with onnxruntime; it has no encoder, hence no edits.

    A seed gives the image that the exported pipeline samples on a CPU, up to the rounding of logits.

    Args:
        folder: What `export_onnx` wrote.
        providers: Execution providers of onnxruntime, in the order of preference.

    Raises:
        FileNotFoundError: a file of the export is missing.
        ImportError: the extra `onnx` is not installed.
        ValueError: config.json is not that of an export.
    """

    def __init__(
        self, folder: str | os.PathLike[str], providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        runtime, folder = require("onnxruntime", "onnx"), Path(folder)
        for name in (_CONFIG, _TABLES, *(f"{graph}.onnx" for graph in _GRAPHS)):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is no ONNX export: it has no {name}")
        configs = read_record(folder / _CONFIG, dict[str, dict[str, Any]])
        tables = load_file(folder / _TABLES)
        sessions = {
            name: runtime.InferenceSession(str(folder / f"{name}.onnx"), providers=list(providers))
            for name in _GRAPHS
        }

        def run(graph: str, **inputs: Tensor) -> Tensor:
            (out,) = sessions[graph].run(None, {name: each.numpy() for name, each in inputs.items()})
            return torch.from_numpy(out)

        source = str(folder / _CONFIG)
        kind = architecture(str(configs["model"].get("model_type"))).config_class()
        codes = VQVAEConfig.from_dict(configs["vqvae"], source)
        model: Any = _Model(kind.from_dict(configs["model"], source), run, tables)
        vqvae: Any = _VQVAE(codes, run, tables)
        vqvae.quantizer = _Quantizer(codes, run, tables)
        self.model, self.vqvae, self._engine = model, vqvae, None
