"""MVAR attends inside its own scale, carries nothing between scales, and starts from a VAR's parameters."""

import pytest
import torch

from mvar_models import MVAR, VAR, MVARConfig, VARConfig, VQVAEConfig
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.settings import SamplingSettings

from adjacent_cases import SHAPE, adjacent
from adjacent_cases import SIDES as ADJACENT_SIDES
from tiny_models import NAMES, SIDES, tiny_mvar, tiny_var, tiny_vqvae

STARTS = (0, 1, 5, 21)


@pytest.fixture
def model(seed):
    """Initial gates are 1e-3, under which a wrong attention would hardly show."""
    model = tiny_mvar()
    with torch.no_grad():
        for block in model.blocks:
            block.modulation.weight.normal_(std=0.1)
            block.attention.proj.weight.normal_(std=0.3)
    return model


@pytest.fixture
def batch(seed):
    labels, indices = torch.tensor([0, 3, 1]), torch.randint(24, (3, STARTS[-1]))
    return labels, tiny_vqvae().quantizer.scale_inputs(indices).detach()


@pytest.mark.parametrize("scales", [range(0, 1), range(1, 2), range(2, 3), range(1, 3)])
@torch.no_grad()
def test_scales_can_be_computed_alone(model, batch, scales):
    labels, inputs = batch
    whole = model(labels, inputs)[:, STARTS[scales.start] : STARTS[scales.stop]]
    assert torch.allclose(model(labels, inputs, scales=scales), whole, atol=1e-4)


@torch.no_grad()
def test_a_step_needs_no_step_before_it(model, batch):
    """The finest scale comes first here, and the state is what it was."""
    labels, inputs = batch
    state = model.new_state(labels)
    assert state.cache is None
    embedding = state.class_embedding.clone()
    whole, _ = model.hidden_states(labels, inputs, range(len(SIDES)))
    for scale in reversed(range(len(SIDES))):
        own = inputs[:, max(STARTS[scale] - 1, 0) : STARTS[scale + 1] - 1]
        found = model.step(state, own, scale)
        assert torch.allclose(found, whole[:, STARTS[scale] : STARTS[scale + 1]], atol=1e-4)
    assert state.cache is None
    assert torch.equal(state.class_embedding, embedding)


@torch.no_grad()
def test_a_change_stays_within_its_scale(model, batch):
    labels, inputs = batch
    changed = inputs.clone()
    changed[:, 0] += 1  # the first token of the dense scale of side 2
    before, after = model(labels, inputs), model(labels, changed)
    differs = (before - after).abs().amax(dim=(0, 2)) > 1e-6
    assert differs[1:5].all(), "every token of the dense scale sees it"
    assert torch.equal(before[:, :1], after[:, :1])
    assert torch.equal(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_var_copies_every_parameter(seed, dtype):
    var = tiny_var().to(dtype)
    with torch.no_grad():
        for parameter in var.parameters():
            parameter.normal_()
    mvar = MVAR.from_var(var, kernel_size=3, dense_scales=2)
    assert not mvar.training, "as the VAR"
    found, expected = dict(mvar.named_parameters()), dict(var.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name], value), name
        assert found[name].data_ptr() != value.data_ptr(), f"{name} shares its memory"


def test_from_var_keeps_the_settings_of_the_var():
    var = tiny_var()
    mvar = MVAR.from_var(var, kernel_size=3, dense_scales=2)
    assert (mvar.config.kernel_size, mvar.config.dense_scales) == (3, 2)
    assert mvar.config.class_names == NAMES
    for name in var.config.field_names():
        assert getattr(mvar.config, name) == getattr(var.config, name), name
    assert MVAR.from_var(var).config.dense_scales == len(SIDES), "no more than there are scales"


@pytest.fixture
def saved(tmp_path):
    tiny_var().save_pretrained(tmp_path / "var")
    tiny_mvar().save_pretrained(tmp_path / "mvar")
    return tmp_path


def test_a_checkpoint_of_var_is_converted(saved):
    """With the released windows unless others are asked for; None asks for nothing."""
    var, first = tiny_var(), torch.get_rng_state()
    mvar = MVAR.from_checkpoint(saved / "var", kernel_size=3, dense_scales=None, previous_scales=1)
    assert torch.equal(first, torch.get_rng_state()), "no weights are drawn to be thrown away"
    assert mvar.config == MVAR.from_var(var, kernel_size=3, previous_scales=1).config
    assert all(torch.equal(a, b) for a, b in zip(mvar.parameters(), var.parameters(), strict=True))
    assert mvar.scale_of_token.tolist() == var.scale_of_token.tolist()
    assert isinstance(VAR.from_checkpoint(saved / "var"), VAR)
    with pytest.raises(ValueError, match="history_scales is no setting of a mvar model"):
        MVAR.from_checkpoint(saved / "var", history_scales=2)


def test_a_checkpoint_keeps_its_windows_and_may_see_other_scales(saved):
    mvar = tiny_mvar()
    kept = MVAR.from_checkpoint(saved / "mvar", kernel_size=None, dense_scales=mvar.config.dense_scales)
    assert kept.config == mvar.config
    seeing = MVAR.from_checkpoint(saved / "mvar", previous_scales=1)
    assert seeing.config == mvar.config.replace(previous_scales=1)
    assert torch.equal(seeing.head.weight, mvar.head.weight)
    with pytest.raises(ValueError, match="kernel_size 3, not 5; leave kernel_size out"):
        MVAR.from_checkpoint(saved / "mvar", kernel_size=5)
    with pytest.raises(ValueError, match="kernel_size None, not 5"):
        VAR.from_checkpoint(saved / "var", kernel_size=5)
    with pytest.raises(ValueError, match="describes a 'mvar' model"):
        VAR.from_checkpoint(saved / "mvar")


def quantizer():
    torch.manual_seed(1)
    return MultiScaleQuantizer(VQVAEConfig(vocab_size=16, z_channels=8, sides=ADJACENT_SIDES)).eval()


def drawn(model, labels=(0, 2, 1), scales=None, **options):
    generators = [torch.Generator().manual_seed(10 + i) for i in range(len(labels))]
    settings = SamplingSettings(**{"guidance_scale": 1.5, "top_k": 0, "top_p": 0.9, **options})
    return sample(model, quantizer(), torch.tensor(labels), generators, settings, scales=scales)


@pytest.mark.parametrize("previous_scales", [0, 1, 2, 4])
@torch.no_grad()
def test_scale_by_scale_is_teacher_forcing(previous_scales):
    model, codes = adjacent(previous_scales), quantizer()
    indices = torch.randint(16, (2, model.config.length))
    inputs, labels = codes.scale_inputs(indices), torch.tensor([0, 2])
    expected = model(labels, inputs)
    state, found = model.new_state(labels), []
    for scale in range(len(ADJACENT_SIDES)):
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
    model = adjacent(len(ADJACENT_SIDES) - 1, kernel_size=9)
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
    reached = [bool(moved[model.pyramid.scale_slice(scale)].any()) for scale in range(len(ADJACENT_SIDES))]
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
    assert seen == [6] * len(ADJACENT_SIDES)


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


def test_another_configuration_changes_the_windows():
    """Setting `config` is the one way, and nothing of the old windows is kept."""
    model, wide = tiny_mvar(), tiny_mvar()
    labels, inputs = torch.tensor([0, 1]), torch.randn(2, STARTS[-1] - 1, 4)
    before = model(labels, inputs)
    model.config = model.config.replace(kernel_size=1, dense_scales=0)
    assert model.pyramid == model.config.pyramid() != wide.pyramid
    assert not torch.equal(model(labels, inputs), before)
    model.config = wide.config
    assert torch.equal(model(labels, inputs), before)
