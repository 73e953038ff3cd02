"""Our models give the released implementations' figures on every case in MVAR_GOLDEN_DIR (tests/golden)."""

import pytest
import torch

from mvar_models.checkpoints.official import official_name
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.settings import SamplingSettings

from golden_weights import FAMILIES, Case, assert_close_to_largest, assert_indices_equal, case_names

LOGITS, LOSS, GRADIENT, IMAGE = 1e-4, 1e-5, 1e-3, 1e-3


@pytest.fixture(scope="module", params=case_names())
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def vqvae(case):
    return case.vqvae()


def images_of(vqvae, f_hat):
    return (vqvae.decode_latents(f_hat)[:, :, ::8, ::8] + 1) / 2


def test_folder_has_cases():
    assert any(map(case_names, ("", *FAMILIES))), (
        "no golden case was found; MVAR_GOLDEN_DIR must hold NAME.json and NAME.safetensors"
    )


@torch.no_grad()
def test_vqvae(case, vqvae):
    golden, stride = case.tensors, case.stride
    features = vqvae.latents(case.image())
    assert_close_to_largest(features, golden["vae.f"], LOGITS, "vae.f")
    indices, f_hat = vqvae.quantizer.quantize(golden["vae.f"])
    assert_indices_equal(indices, golden["vae.indices"].long(), "vae.indices")
    assert_indices_equal(vqvae.encode(case.image()), golden["vae.indices"].long(), "indices of the image")
    assert_close_to_largest(f_hat, golden["vae.f_hat"], LOGITS, "vae.f_hat")
    assert_close_to_largest(vqvae.quantizer.embed(indices), golden["vae.f_hat"], LOGITS, "embed(indices)")
    assert_close_to_largest(
        vqvae.decode_latents(f_hat)[:, :, ::8, ::8], golden["vae.recon"], IMAGE, "vae.recon"
    )
    inputs = vqvae.quantizer.scale_inputs(indices)[:, ::stride]
    assert_close_to_largest(inputs, golden["vae.next_scale_input"], LOGITS, "vae.next_scale_input")


@pytest.mark.parametrize("kind", ["var", "mvar"])
@torch.no_grad()
def test_teacher_forcing(case, vqvae, kind):
    indices = case.tensors["vae.indices"].long()
    logits = getattr(case, kind)()(case.labels, vqvae.quantizer.scale_inputs(indices))
    assert_close_to_largest(
        logits[:, :: case.stride], case.tensors[f"{kind}.logits"], LOGITS, f"{kind}.logits"
    )


@pytest.mark.parametrize("run", ["var.greedy", "mvar.greedy_cfg", "mvar.greedy_nocfg"])
def test_greedy_sampling(case, vqvae, run):
    model = case.var() if run.startswith("var") else case.mvar()
    guidance = 1.0 if run.endswith("nocfg") else case.config["cfg"]
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    settings = SamplingSettings(guidance, 1, 0.0)
    result = sample(model, vqvae.quantizer, case.labels, generators, settings)
    golden = case.tensors
    assert_indices_equal(result.indices, golden[f"{run}.indices"].long(), run)
    assert_close_to_largest(
        result.final_logits[:, :: case.stride], golden[f"{run}.final_logits"], LOGITS, f"{run}.final_logits"
    )
    if f"{run}.f_hat" in golden:
        assert_close_to_largest(result.f_hat, golden[f"{run}.f_hat"], LOGITS, f"{run}.f_hat")
    with torch.no_grad():
        assert_close_to_largest(images_of(vqvae, result.f_hat), golden[f"{run}.image"], IMAGE, f"{run}.image")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(case, vqvae, checkpointing):
    model, indices = case.mvar(), case.tensors["vae.indices"].long()
    if checkpointing:
        model.gradient_checkpointing_enable()
    loss = model.loss(case.labels, vqvae.quantizer.scale_inputs(indices).detach(), indices)
    expected = case.figures["mvar_loss"]
    assert abs(loss.item() - expected) <= LOSS * abs(expected), f"loss {loss.item()}, expected {expected}"
    loss.backward()
    norms = case.figures["mvar_grad_norm"]
    seen = set()
    for ours, parameter in model.named_parameters():
        name = official_name(ours, model.config)
        seen.add(name)
        if name in case.figures["mvar_no_grad"]:
            assert parameter.grad is None or not parameter.grad.any(), f"{name} should have no gradient"
            continue
        norm = parameter.grad.norm().item()
        assert abs(norm - norms[name]) <= GRADIENT * norms[name] + 1e-7, (
            f"{name}: gradient norm {norm}, expected {norms[name]}"
        )
        if f"mvar.grad.{name}" in case.tensors:
            golden = case.tensors[f"mvar.grad.{name}"].flatten()
            assert_close_to_largest(
                parameter.grad.flatten()[: golden.numel()], golden, GRADIENT, f"gradient of {name}"
            )
    assert seen == set(norms) | set(case.figures["mvar_no_grad"])


def test_scales_can_be_computed_apart(case, vqvae):
    """MVAR's logits of some scales alone are those of the whole, and so are VAR's of the first."""
    indices = case.tensors["vae.indices"].long()
    inputs = vqvae.quantizer.scale_inputs(indices).detach()
    for model, ranges in (
        (case.mvar(), (range(0, 3), range(3, 9), range(9, 10))),
        (case.var(), (range(0, 4),)),
    ):
        with torch.no_grad():
            whole = model(case.labels, inputs)
            for scales in ranges:
                start = model.pyramid.offsets[scales.start]
                stop = model.pyramid.scale_slice(scales.stop - 1).stop
                assert_close_to_largest(
                    model(case.labels, inputs, scales=scales), whole[:, start:stop], LOGITS, f"{scales}"
                )
