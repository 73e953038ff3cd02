"""ONNX exports sample what the exported pipeline samples."""

import json
import os

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from mvar_models.pipeline import pipeline_of
from mvar_models.sampling.hooks import SpatialGuidance

from chosen_cases import some
from tiny_models import tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnx_export = pytest.importorskip("mvar_models.pipeline.onnx")

# An export takes twelve seconds.
NAMES = some(["mvar", "var"], 1)
LABELS, OPTIONS = [1, 0, 1], {"seed": 3, "output_type": "np"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A tiny MVAR and VAR with the folders that they were exported to."""
    made = {}
    for name in NAMES:
        model = tiny_mvar() if name == "mvar" else tiny_var()
        pipeline = pipeline_of(model.eval(), tiny_vqvae().eval())
        for network in (pipeline.model, pipeline.vqvae):  # so that storing halves loses nothing
            network.half().float()
        folder = tmp_path_factory.mktemp(name) / "onnx"
        if torch.__version__ < TorchVersion("2.7"):
            with pytest.raises(RuntimeError, match=r"PyTorch 2\.6.* cannot export the graph"):
                onnx_export.export_onnx(pipeline, folder)
            assert not any(folder.parent.iterdir())
            pytest.skip("PyTorch 2.6 cannot export, and says so in one line")
        made[name] = pipeline, onnx_export.export_onnx(pipeline, folder)
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [{"top_k": 1}, {"guidance_scale": 0.0}, {"guidance_scale": 3.0, "top_p": 0.8, "batch_size": 3}],
    ids=["greedy", "without guidance", "guided, one batch"],
)
def test_a_seed_gives_the_image_of_the_exported_pipeline(exports, name, options):
    """For any batch size, for the Markov model and for the one that recomputes the coarser scales."""
    pipeline, folder = exports[name]
    options = {**OPTIONS, "batch_invariant": "batch_size" not in options, **options}
    expected, actual = pipeline(LABELS, **options), onnx_export.OnnxPipeline(folder)(LABELS, **options)
    assert torch.equal(actual.indices, expected.indices)
    assert np.abs(actual.images.astype(int) - expected.images).max() <= 1
    assert torch.allclose(actual.latents, expected.latents, atol=1e-4)


def test_samplers_processors_and_callbacks_work_as_before(exports):
    pipeline, folder = exports[NAMES[0]]
    seen = []
    options = {**OPTIONS, "sampler": "smooth", "processors": [SpatialGuidance(0.5)]}
    expected = pipeline(LABELS, **options)
    actual = onnx_export.OnnxPipeline(folder)(
        LABELS, on_scale=lambda scale, f_hat: seen.append(scale), **options
    )
    assert torch.allclose(actual.latents, expected.latents, atol=1e-3)
    assert seen == list(range(len(pipeline.model.config.sides))) * len(LABELS)


def test_stored_halves_take_half_the_bytes_and_int8_a_quarter(exports, tmp_path):
    """Also that int8 weights give nearly the logits of float32, so that factors belong to the right rows."""
    import onnx

    _, folder = exports[NAMES[0]]
    sizes, weights = {}, {}
    for kind in onnx_export.STORED:
        file = tmp_path / f"{kind}.onnx"
        file.write_bytes((folder / "step.onnx").read_bytes())
        if kind != "float32":
            onnx_export._store(file, kind)
        sizes[kind] = file.stat().st_size
        weights[kind] = onnx_export.require("onnxruntime", "onnx").InferenceSession(str(file))
    # Small tensors and the graph itself stay as they are.
    graph = sum(len(each.SerializeToString()) for each in onnx.load(str(folder / "step.onnx")).graph.node)
    assert sizes["float16"] < 0.6 * sizes["float32"] + graph and sizes["int8"] < sizes["float16"]
    z = exports[NAMES[0]][0].model.config.z_channels
    inputs = {
        "labels": np.array([0, 1]), "inputs": np.random.default_rng(0).normal(size=(2, 4, z)).astype("f"),
        "places": np.arange(1, 5), "mask": np.ones((4, 4), dtype=bool),
    }  # fmt: skip
    out = {kind: session.run(None, inputs)[0] for kind, session in weights.items()}
    scale = np.abs(out["float32"]).max()
    assert np.abs(out["float16"] - out["float32"]).max() < 0.01 * scale
    assert 0 < np.abs(out["int8"] - out["float32"]).max() < 0.1 * scale


def test_what_cannot_be_exported_or_opened_is_named(exports, tmp_path):
    pipeline, folder = exports[NAMES[0]]
    with pytest.raises(FileExistsError, match="choose another folder"):
        onnx_export.export_onnx(pipeline, folder)
    with pytest.raises(ValueError, match="weights must be one of float32, float16, int8, got 'int3'"):
        onnx_export.export_onnx(pipeline, tmp_path / "a", "int3")
    markov = pipeline_of(tiny_markov_var(), tiny_vqvae())
    with pytest.raises(ValueError, match="takes VAR and MVAR, got MarkovVAR"):
        onnx_export.export_onnx(markov, tmp_path / "a")
    adapted = pipeline_of(tiny_mvar(), tiny_vqvae())
    adapted.model.head = type("Adapter", (torch.nn.Linear,), {})(4, 4)
    with pytest.raises(ValueError, match="a Adapter of another package; merge adapters first"):
        onnx_export.export_onnx(adapted, tmp_path / "a")
    assert not os.listdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match="is no ONNX export: it has no tables"):
        onnx_export.OnnxPipeline(tmp_path)
    with pytest.raises(AttributeError, match="an ONNX export has no latents"):
        onnx_export.OnnxPipeline(folder).inpaint(np.zeros((32, 32, 3), "uint8"), np.ones((32, 32), "uint8"))
