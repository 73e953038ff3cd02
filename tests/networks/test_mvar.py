"""MVAR attends inside its own scale, carries nothing between scales, and starts from a VAR's parameters."""

import pytest
import torch

from mvar_models import MVAR, VAR

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
