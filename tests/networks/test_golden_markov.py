"""Our Markov-VAR gives the released implementation's figures on every markov*.json in MVAR_GOLDEN_DIR."""

import pytest
import torch

from mvar_models.checkpoints.official import official_name
from mvar_models.networks.markov_var import rotary_angles, rotate
from mvar_models.sampling.inpainting import ReleasedRule
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.settings import SamplingSettings

from golden_weights import Case, assert_close_to_largest, assert_indices_equal, case_names, normal

# The smallest mistake that was tried moves logits by 1.7e-4 of the largest (tests/golden/README.md).
TOLERANCE, LOSS, GRADIENT, IMAGE = 2e-5, 1e-5, 1e-3, 1e-3


@pytest.fixture(scope="module", params=case_names("markov"))
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def vqvae(case):
    return case.vqvae()


@pytest.fixture(scope="module")
def model(case):
    return case.markov_var()


@pytest.fixture(scope="module")
def inputs(case, vqvae):
    with torch.no_grad():
        return vqvae.quantizer.scale_inputs(case.tensors["vae.indices"].long())


def test_parameters(case, model):
    assert model.num_parameters() == case.figures["parameters"]


def test_rotary_code(case):
    config = case.config
    head_dim = config["embed_dim"] // config["num_heads"]
    sides = config["patch_nums"]
    length = sum(side * side for side in sides)
    vectors = torch.from_numpy(normal("rope.in", (1, 1, length, head_dim))).transpose(1, 2)
    turned = rotate(vectors, *rotary_angles(sides, head_dim))[0, :: case.stride, 0]
    assert_close_to_largest(turned, case.tensors["rope.out"], TOLERANCE, "rope.out")


@torch.no_grad()
def test_teacher_forcing(case, model, inputs):
    golden, stride = case.tensors, case.stride
    everything = range(len(model.config.sides))
    seen = {}
    handles = [
        model.history_pool.register_forward_hook(
            lambda module, args, output: seen.setdefault("pooled", []).append(output)
        ),
        model.blocks[0].register_forward_pre_hook(lambda module, args: seen.__setitem__("input", args[0])),
        model.blocks[0].register_forward_hook(
            lambda module, args, output: seen.__setitem__("output", output)
        ),
    ]
    logits = model(case.labels, inputs, everything)
    for handle in handles:
        handle.remove()
    pooled = torch.stack(seen["pooled"], dim=1)
    assert_close_to_largest(pooled, golden["markov.pooled"], TOLERANCE, "markov.pooled")
    assert_close_to_largest(
        seen["input"][:, ::stride], golden["markov.block_input"], TOLERANCE, "markov.block_input"
    )
    assert_close_to_largest(
        seen["output"][:, ::stride], golden["markov.block0_output"], TOLERANCE, "markov.block0_output"
    )
    assert_close_to_largest(logits[:, ::stride], golden["markov.logits"], TOLERANCE, "markov.logits")


@torch.no_grad()
def test_greedy_sampling(case, vqvae, model):
    golden, stride = case.tensors, case.stride
    for run, guidance in case.config["cfg_runs"].items():
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        settings = SamplingSettings(guidance, 1, 0.0)
        result = sample(model, vqvae.quantizer, case.labels, generators, settings)
        run = f"markov.{run}"
        assert_indices_equal(result.indices, golden[f"{run}.indices"].long(), run)
        assert_close_to_largest(
            result.final_logits[:, ::stride], golden[f"{run}.final_logits"], TOLERANCE, f"{run}.final_logits"
        )
        assert_close_to_largest(result.f_hat, golden[f"{run}.f_hat"], TOLERANCE, f"{run}.f_hat")
        image = (vqvae.decode_latents(result.f_hat)[:, :, ::8, ::8] + 1) / 2
        assert_close_to_largest(image, golden[f"{run}.image"], IMAGE, f"{run}.image")


class Noted:
    """Notes the codes that a rule is given, then follows it."""

    def __init__(self, rule):
        self.rule, self.drawn = rule, []

    def replace(self, scale, f_hat, codes, vectors):
        self.drawn.append(codes)
        return self.rule.replace(scale, f_hat, codes, vectors)


@torch.no_grad()
def test_editing(case, vqvae, model):
    golden, side = case.tensors, case.config["patch_nums"][-1]
    keep = torch.ones(2, side, side)
    y0, x0, y1, x1 = (round(edge * side) for edge in case.config["edit_box"])
    keep[:, y0:y1, x0:x1] = 0
    given = Noted(ReleasedRule(vqvae.quantizer, golden["vae.indices"].long(), keep))
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    result = sample(
        model,
        vqvae.quantizer,
        case.labels,
        generators,
        SamplingSettings(case.config["cfg_runs"]["greedy"], 1, 0.0),
        given=given,
    )
    expected = golden["markov.edit.drawn_indices"].long()
    assert_indices_equal(torch.cat(given.drawn, dim=1), expected, "markov.edit.drawn_indices")
    assert_close_to_largest(result.f_hat, golden["markov.edit.f_hat"], TOLERANCE, "markov.edit.f_hat")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(case, model, inputs, checkpointing):
    model.zero_grad(set_to_none=True)
    model.gradient_checkpointing = checkpointing
    loss = model.loss(case.labels, inputs, case.tensors["vae.indices"].long())
    expected = case.figures["markov_loss"]
    assert abs(loss.item() - expected) <= LOSS * abs(expected), f"loss {loss.item()}, expected {expected}"
    loss.backward()
    norms = case.figures["markov_grad_norm"]
    seen = set()
    for ours, parameter in model.named_parameters():
        name = official_name(ours, model.config)
        seen.add(name)
        norm = parameter.grad.norm().item()
        assert abs(norm - norms[name]) <= GRADIENT * norms[name] + 1e-6, (
            f"{name}: gradient norm {norm}, expected {norms[name]}"
        )
    assert seen == set(norms)


@torch.no_grad()
def test_scales_can_be_computed_apart(case, model, inputs):
    whole = model(case.labels, inputs)
    for scales in (range(0, 1), range(1, 4), range(4, 9), range(9, 10)):
        start = model.pyramid.offsets[scales.start]
        stop = model.pyramid.scale_slice(scales.stop - 1).stop
        part = model(case.labels, inputs, scales=scales)
        assert_close_to_largest(part, whole[:, start:stop], TOLERANCE, f"{scales}")
