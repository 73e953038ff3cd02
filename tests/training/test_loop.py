"""The training loop: precision, overflow, clipping, micro-batches, compilation, recomputation, signals."""

import copy
import signal

import pytest
import torch

from mvar_models import MVAR
from mvar_models.training.loop import Loop
from mvar_models.training.signals import StopSignals, stopped_by

from tiny_models import tiny_mvar
from training_cases import new_loop


def figures(loop):
    """Losses of all steps, and the held-out loss."""
    result = loop.fit()
    return [line["loss"] for line in loop.folder.metrics() if "loss" in line] + [result["val_loss"]]


@pytest.mark.parametrize("precision, same_steps", [("bf16", 4), ("fp16", 1)])
def test_half_precision(tmp_path, precision, same_steps):
    """Losses differ from float32's by the rounding of half precision, no less and no more; weights stay
    float32.

    fp16 skips its second step, which overflows, so only its first loss is comparable.
    """
    expected = figures(new_loop(tmp_path / "fp32"))
    loop = new_loop(tmp_path / precision, precision=precision)
    actual = figures(loop)
    assert {parameter.dtype for parameter in loop.task.model.parameters()} == {torch.float32}
    compared = [*range(same_steps), *([-1] if same_steps == 4 else [])]
    for index in compared:
        difference = abs(actual[index] - expected[index]) / expected[index]
        assert 2e-6 < difference < 5e-3, f"loss {index}: {actual[index]}, in float32 {expected[index]}"


def test_overflowing_steps_are_skipped_and_counted(tmp_path, monkeypatch):
    """Neither weights nor moments of a skipped step change, and the scale is halved."""
    loop = new_loop(tmp_path / "run", precision="fp16")
    loop.step(0)
    skipped = loop.loss_scale.skipped_steps
    before = copy.deepcopy(loop.task.model.state_dict())
    plain = Loop.gradients

    def overflow(self, index):
        result = plain(self, index)
        next(self.task.model.parameters()).grad[0] = float("inf")
        return result

    monkeypatch.setattr(Loop, "gradients", overflow)
    factor = loop.loss_scale.factor
    values, _ = loop.step(1)
    assert values["skipped_steps"] == skipped + 1
    assert values["loss_scale"] == factor / 2
    assert values["grad_norm"] is None
    assert all(torch.equal(before[name], value) for name, value in loop.task.model.state_dict().items())


def test_clipping_and_the_unscaled_step(tmp_path):
    """The step is AdamW's on gradients of norm 2, whatever the precision's factor."""
    loop = new_loop(tmp_path / "run", weight_decay=0.0)
    loop.settings = loop.settings.from_dict({**loop.settings.to_dict(), "clip": 1e-3})
    loop.step(0)
    norm = torch.stack([parameter.grad.norm() for parameter in loop.task.model.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-4)


def test_micro_batches_change_nothing(tmp_path):
    runs = [
        new_loop(tmp_path / str(accumulate), accumulate=accumulate, batch_size=7) for accumulate in (1, 3)
    ]
    for loop in runs:
        loop.fit()
    first, second = ([line["loss"] for line in loop.folder.metrics() if "loss" in line] for loop in runs)
    assert second == pytest.approx(first, rel=1e-5)


def test_compiled_blocks_train_alike(tmp_path, monkeypatch):
    """torch.compile of each block, here without code generation, gives the same losses and names in
    checkpoints.
    """
    plain_compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, *a, **k: plain_compile(self, *a, backend="aot_eager", **k)
    )
    torch._dynamo.reset()
    runs = [new_loop(tmp_path / str(compiled), compile=compiled, steps=3) for compiled in (False, True)]
    for loop in runs:
        loop.fit()
    assert runs[1].task.model.blocks[0]._compiled_call_impl is not None
    first, second = ([line["loss"] for line in loop.folder.metrics() if "loss" in line] for loop in runs)
    assert second == pytest.approx(first, rel=1e-5)
    assert (
        torch.nn.Module.state_dict(MVAR.from_pretrained(runs[1].folder.model)).keys()
        == tiny_mvar().state_dict().keys()
    )


def test_activation_checkpointing_trains_alike(tmp_path):
    runs = [new_loop(tmp_path / str(on), activation_checkpointing=on) for on in (False, True)]
    assert runs[1].task.model.gradient_checkpointing
    assert not runs[0].task.model.gradient_checkpointing
    for loop in runs:
        loop.fit()
    first, second = ([line["loss"] for line in loop.folder.metrics() if "loss" in line] for loop in runs)
    assert second == pytest.approx(first, rel=1e-6)


def test_a_second_signal_ends_at_once(monkeypatch):
    # In a background job of a shell, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals() as signals, pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # torchrun passing on what the terminal sent already
            assert signals.received == signal.SIGINT
            monkeypatch.setattr(signals, "_when", signals._when - 60)
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "number, code, name", [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_the_exit_code_is_a_shell_s(number, code, name):
    stopped = stopped_by(number, 40, "runs/a")
    assert stopped.exit_code == code
    assert name in str(stopped)
    assert "step 40" in str(stopped)
    assert "--resume runs/a" in str(stopped)
