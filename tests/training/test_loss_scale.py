"""The loss scale of fp16: halved by an overflow, doubled by 2,000 steps without one."""

import pytest

from mvar_models.training.loss_scale import LossScale


def test_an_overflow_halves():
    scale = LossScale(enabled=True)
    assert scale.factor == 2.0**16
    scale.overflowed()
    assert scale.factor == 2.0**15
    assert scale.skipped_steps == 1


def test_2000_good_steps_double():
    scale = LossScale(enabled=True)
    for _ in range(1999):
        scale.stepped()
    assert scale.factor == 2.0**16
    scale.stepped()
    assert scale.factor == 2.0**17


def test_an_overflow_begins_the_count_again():
    scale = LossScale(enabled=True)
    for _ in range(1999):
        scale.stepped()
    scale.overflowed()
    for _ in range(1999):
        scale.stepped()
    assert scale.factor == 2.0**15
    scale.stepped()
    assert scale.factor == 2.0**16


def test_an_endless_overflow_is_an_error():
    """Down to 2^-10 it may be an unlucky start; below that something is wrong."""
    scale = LossScale(enabled=True)
    for _ in range(26):
        scale.overflowed()
    assert scale.factor == 2.0**-10
    with pytest.raises(FloatingPointError, match="overflow"):
        scale.overflowed()


def test_it_resumes():
    scale = LossScale(enabled=True)
    scale.overflowed()
    scale.stepped()
    again = LossScale(enabled=True)
    again.load_state_dict(scale.state_dict())
    assert vars(again) == vars(scale)


def test_off_it_stays_one():
    scale = LossScale(enabled=False)
    for _ in range(5000):
        scale.stepped()
    assert scale.factor == 1.0
