"""A program's own defaults of torch, and inference mode, change no bit: networks, pipelines, training.

"meta" stands for a device other than the one that networks are on, such as "cuda": nothing may be created
there that meets a network's tensors. Expected values come last, so that no cache has them from a usual call.
"""

import ast
import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

import mvar_models
from mvar_models import MVAR, VQVAE
from mvar_models.evaluation.nearest import nearest_distances
from mvar_models.pipeline import pipeline_of
from mvar_models.sampling import hooks
from mvar_models.sampling.hooks import SpatialGuidance
from mvar_models.training import runs
from mvar_models.training.transformer_task import token_weights

from run_cases import make_data
from tiny_models import tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae

FACTORIES = {
    "arange", "empty", "eye", "full", "linspace", "normal", "ones", "rand", "randint", "randn", "randperm",
    "tensor", "as_tensor", "asarray", "scalar_tensor", "zeros", "Generator",
}  # fmt: skip
NO_FLOATS = FACTORIES - {"empty", "eye", "linspace", "normal", "ones", "rand", "randn", "zeros"}


def test_tensors_are_created_on_a_device_of_a_type_that_we_name():
    """But for parameters and buffers of a new network, which go where the program wants them."""
    silent = []
    for path in Path(mvar_models.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        new_networks = [
            node
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name in ("__init__", "add_body")
            for node in ast.walk(function)
        ]
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if getattr(call.func.value, "id", "") != "torch" or call.func.attr not in FACTORIES:
                continue
            named = {keyword.arg for keyword in call.keywords}
            is_placed = "device" in named or (call.func.attr == "Generator" and call.args)
            is_typed = call.func.attr in NO_FLOATS or "dtype" in named
            if call not in new_networks and not (is_placed and is_typed):
                silent.append(f"{path.name}:{call.lineno} torch.{call.func.attr}")
    assert not silent


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS = {
    "device": default_device,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
}
PIPES = {
    model.config.model_type: pipeline_of(model, tiny_vqvae())
    for model in (tiny_var(), tiny_mvar(), tiny_markov_var())
}
IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(16, 16)
MASK[4:9, 2:7] = 0
LABELS = torch.tensor([0, 2, 1])
CODES = torch.from_numpy(np.random.default_rng(0).integers(0, 24, (3, 21)))
IMAGES = torch.stack([IMAGE] * 3) * 2 - 1


def drawn(pipe, **options):
    output = pipe([0, 2], seed=3, output_type="pt", **options)
    return [output.images, output.indices, output.latents, *output.scales]


def trained(arch):
    model, quantizer = PIPES[arch].model, PIPES[arch].vqvae.quantizer
    model.zero_grad()
    weights = token_weights("density", model.config.sides)
    loss = model.loss(LABELS, quantizer.scale_inputs(CODES), CODES, token_weights=weights)
    loss.backward()
    return [loss.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]


def loaded(folder):
    """`folder` holds one checkpoint per architecture; they can be trained afterwards."""
    found = []
    for arch, pipe in PIPES.items():
        model = type(pipe.model).from_pretrained(folder / arch)
        model.replace_classes(4)
        found += [*model.parameters(), *model.buffers()]
    vqvae = VQVAE.from_pretrained(folder / "vae")
    vqvae.set_sides((1, 3))
    found += [*vqvae.parameters(), *vqvae.buffers()]
    with torch.inference_mode(False), torch.enable_grad():
        sum(each.double().sum() for each in found if each.requires_grad).backward()
    assert not any(each.is_inference() for each in found)
    return [each.detach() for each in found]


def edited(pipe):
    return [
        pipe.inpaint(IMAGE, MASK, [1], output_type="pt").images,
        pipe.inpaint(
            IMAGE, MASK, [1], output_type="pt", rule="released", padding_mask_crop=2, paste=False
        ).images,
        pipe.outpaint(IMAGE, (1, 2, 3, 4), [1], output_type="pt").images,
        pipe.vary(IMAGE, 2, [1], output_type="pt").images,
    ]


def encoded(folder):
    vqvae = PIPES["var"].vqvae
    return [vqvae.encode(IMAGES), vqvae.decode(CODES), vqvae.quantizer.scale_inputs(CODES)]


WAYS = {
    **{f"draw {arch}": lambda folder, arch=arch: drawn(PIPES[arch]) for arch in PIPES},
    **{f"edit {arch}": lambda folder, arch=arch: edited(PIPES[arch]) for arch in PIPES},
    "smooth": lambda folder: drawn(PIPES["mvar"], sampler="smooth"),
    "unguided": lambda folder: drawn(PIPES["mvar"], guidance_scale=0.0),
    "processors": lambda folder: drawn(PIPES["mvar"], processors=[SpatialGuidance(1.0)]),
    "none": lambda folder: [pipe([], output_type="pt").latents for pipe in PIPES.values()],
    "load": loaded,
    "encode": encoded,
    "nearest": lambda folder: [
        torch.from_numpy(nearest_distances(np.eye(4, dtype=np.float32), np.ones((3, 4), np.float32)))
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_data(tmp_path_factory.mktemp("defaults"))
    for arch, pipe in PIPES.items():
        pipe.model.save_pretrained(folder / arch)
    return folder


def same(found, expected):
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(found, expected)
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_bits(setting, way, folder):
    hooks._resize.cache_clear()
    torch.manual_seed(0)
    with SETTINGS[setting]():
        found = WAYS[way](folder)
    torch.manual_seed(0)
    assert same(found, WAYS[way](folder))


@pytest.mark.parametrize("arch", PIPES)
@pytest.mark.parametrize("setting", ["device", "float64", "bfloat16"])
def test_training_steps_of_ones_own(setting, arch):
    with SETTINGS[setting]():
        found = trained(arch)
    assert same(found, trained(arch))


@pytest.mark.parametrize("arch", PIPES)
@torch.inference_mode()
def test_what_is_made_in_inference_mode_can_be_trained(arch):
    pipe = PIPES[arch]
    drawn(pipe, processors=[SpatialGuidance(1.0)])
    model, vqvae = type(pipe.model)(pipe.model.config), VQVAE(pipe.vqvae.config)
    made = [each for network in (model, vqvae) for each in (*network.parameters(), *network.buffers())]
    assert not any(each.is_inference() for each in made)
    with torch.inference_mode(False):
        assert trained(arch)[0].isfinite()
        model.loss(LABELS, vqvae.quantizer.scale_inputs(CODES), CODES).backward()


@pytest.mark.parametrize("setting", SETTINGS)
def test_runs(setting, folder, tmp_path):
    """Two steps of a transformer and of a VQVAE, with validation and samples."""

    def weights(out):
        given = dict(steps=2, batch_size=4, device="cpu", out=str(out / "a"))
        shape = dict(depth=2, width=32, num_heads=2, kernel_size=3, dense_scales=2)
        run = runs.start_transformer_run(
            data=str(folder / "data"), vqvae=str(folder / "vae"), **given, **shape
        )
        runs.train_transformer(run)
        shape = dict(channels=32, sides=(1, 2, 4), vocab_size=16, z_channels=4)
        run = runs.start_vqvae_run(data=str(folder / "data"), **{**given, "out": str(out / "b")}, **shape)
        runs.train_vqvae(run)
        networks = MVAR.from_pretrained(out / "a" / "model"), VQVAE.from_pretrained(out / "b" / "model")
        return [each.detach() for network in networks for each in network.parameters()]

    with SETTINGS[setting]():
        found = weights(tmp_path / "other")
    assert same(found, weights(tmp_path / "usual"))
