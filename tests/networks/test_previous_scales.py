"""MVAR with previous scales: between MVAR and VAR, by one parameter."""

import pytest
import torch

from mvar_models import MVAR, VAR, MVARConfig, VARConfig, VQVAEConfig
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.settings import SamplingSettings

from adjacent_cases import SHAPE, SIDES, adjacent


def quantizer():
    torch.manual_seed(1)
    return MultiScaleQuantizer(VQVAEConfig(vocab_size=16, z_channels=8, sides=SIDES)).eval()


def drawn(model, labels=(0, 2, 1), **options):
    generators = [torch.Generator().manual_seed(10 + i) for i in range(len(labels))]
    settings = SamplingSettings(**{"guidance_scale": 1.5, "top_k": 0, "top_p": 0.9, **options})
    return sample(model, quantizer(), torch.tensor(labels), generators, settings)


@pytest.mark.parametrize("previous_scales", [0, 1, 2, 4])
@torch.no_grad()
def test_scale_by_scale_is_teacher_forcing(previous_scales):
    model, codes = adjacent(previous_scales), quantizer()
    indices = torch.randint(16, (2, model.config.length))
    inputs, labels = codes.scale_inputs(indices), torch.tensor([0, 2])
    expected = model(labels, inputs)
    state, found = model.new_state(labels), []
    for scale in range(len(SIDES)):
        own = model.pyramid.scale_slice(scale)
        hidden = model.step(state, inputs[:, max(own.start - 1, 0) : own.stop - 1], scale)
        found.append(model.logits(hidden, state.class_embedding))
    assert (torch.cat(found, dim=1) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("previous_scales", [1, 2])
def test_what_is_drawn_is_what_teacher_forcing_predicts(previous_scales):
    """Greedy codes, fed back as ground truth, are the most likely codes."""
    model = adjacent(previous_scales)
    result = drawn(model, guidance_scale=0.0, top_k=1, top_p=0.0)
    with torch.no_grad():
        logits = model(torch.tensor([0, 2, 1]), quantizer().scale_inputs(result.indices))
    best = logits.max(dim=-1).values
    chosen = logits.gather(-1, result.indices.unsqueeze(-1)).squeeze(-1)
    assert (best - chosen).max() <= 1e-4 * logits.abs().max()


@torch.no_grad()
def test_all_previous_scales_and_whole_windows_are_var():
    model = adjacent(len(SIDES) - 1, kernel_size=9)
    var = VAR(VARConfig(**SHAPE)).eval()
    var.load_state_dict(model.state_dict(), strict=True)
    inputs, labels = torch.randn(2, model.config.length - 1, 8), torch.tensor([0, 2])
    assert (model(labels, inputs) - var(labels, inputs)).abs().max() <= 1e-5
    ours, theirs = drawn(model), drawn(var)
    assert torch.equal(ours.indices, theirs.indices)


@torch.no_grad()
def test_a_token_sees_its_own_and_the_previous_scale_alone():
    """Through one block; every further block reaches one scale further."""
    torch.manual_seed(0)
    model = MVAR(MVARConfig(**{**SHAPE, "depth": 1}, kernel_size=3, dense_scales=1, previous_scales=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    inputs, labels = torch.randn(1, model.config.length - 1, 8), torch.tensor([0])
    expected = model(labels, inputs)
    changed = inputs.clone()
    second = model.pyramid.scale_slice(2)
    changed[:, second.start - 1 : second.stop - 1] += 1
    moved = (model(labels, changed) - expected).abs().amax(dim=(0, 2)) > 1e-6
    reached = [bool(moved[model.pyramid.scale_slice(scale)].any()) for scale in range(len(SIDES))]
    assert reached == [False, False, True, True, False]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_same_codes_in_every_batch_size(count):
    model = adjacent(1)
    labels = [i % 3 for i in range(8)]
    alone = drawn(model, labels).indices
    batches = [
        sample(
            model,
            quantizer(),
            torch.tensor(labels[start : start + count]),
            [torch.Generator().manual_seed(10 + i) for i in range(start, min(start + count, 8))],
            SamplingSettings(1.5, 0, 0.9),
        ).indices
        for start in range(0, 8, count)
    ]
    assert torch.equal(torch.cat(batches), alone)


def test_the_unconditional_half_begins_at_scale_0():
    """The finer scales attend to its keys, though the released schedule has weight 0 there."""
    model, seen = adjacent(1), []
    step = model.step

    def counted(state, inputs, scale):
        seen.append(len(inputs))
        return step(state, inputs, scale)

    model.step = counted
    drawn(model)
    assert seen == [6] * len(SIDES)


def test_fine_scales_alone_are_refused():
    with pytest.raises(ValueError, match=r"scales must start at 0, got range\(2, 5\)"):
        drawn(adjacent(1), scales=range(2, 5))
    assert drawn(adjacent(1), scales=range(0, 3)).indices.shape == (3, 14)


@pytest.mark.parametrize("previous_scales", [-1, 5])
def test_wrong_numbers_of_scales_are_named(previous_scales):
    with pytest.raises(ValueError, match=f"^previous_scales .* got {previous_scales}"):
        MVARConfig(**SHAPE, dense_scales=1, previous_scales=previous_scales)


def test_parameters_are_those_of_any_var_or_mvar(tmp_path):
    var = VAR(VARConfig(**SHAPE))
    from_var = MVAR.from_var(var, kernel_size=3, dense_scales=1, previous_scales=2)
    from_mvar = MVAR.from_var(var, kernel_size=3, dense_scales=1).with_previous_scales(2)
    assert from_var.config == from_mvar.config and from_var.config.previous_scales == 2
    for model in (from_var, from_mvar):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), var.parameters(), strict=True))
    from_var.save_pretrained(tmp_path / "model")
    assert MVAR.from_pretrained(tmp_path / "model").config == from_var.config
