"""Devices by name, and batches that fit a budget."""

import pytest
import torch

from mvar_models.devices import checked_device, default_device, fit_batch


@pytest.fixture
def gpus(monkeypatch):
    """Let torch see that many GPUs."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def test_what_the_machine_has(gpus):
    gpus(2)
    assert checked_device(None) == torch.device("cpu")
    assert checked_device("cuda:1") == torch.device("cuda:1")
    assert checked_device(torch.device("cuda")) == torch.device("cuda")
    assert default_device() == "cuda"
    gpus(0)
    assert default_device() == "cpu"


@pytest.mark.parametrize(
    "count, device, match",
    [(0, "cuda", r"'cuda'.*'cpu'"), (2, "cuda:2", r"'cuda:2'.*cuda:0.*cuda:1"), (2, "gpu", "'gpu'")],
)
def test_what_it_lacks_is_named_in_one_line(gpus, count, device, match):
    gpus(count)
    with pytest.raises(ValueError, match=match) as error:
        checked_device(device)
    assert "\n" not in str(error.value)


def test_an_absent_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"'mps'.*'cpu'"):
        checked_device("mps")


@pytest.mark.parametrize(
    "budget, per_image, most, expected",
    [(100, 30, None, 3), (90, 30, None, 3), (10, 30, None, 1), (100, 30, 2, 2), (10, 30, 2, 1)],
)
def test_a_batch_fills_the_budget(budget, per_image, most, expected):
    assert fit_batch(budget, per_image, most) == expected
