"""Where a process finds itself under torchrun, and what it does when it is alone."""

import pytest
import torch
import torch.distributed as dist

from mvar_models.distributed import Processes, RunStopped, lost_process


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def launched(monkeypatch):
    """Set what torchrun sets."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def launch(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_alone(launched):
    processes = Processes.from_environment("cpu")
    assert (processes.rank, processes.world_size, processes.device) == (0, 1, torch.device("cpu"))
    assert processes.alone
    assert processes.first
    processes.connect()
    assert not dist.is_initialized(), "one process needs no group"
    values = torch.arange(3.0)
    assert torch.equal(processes.total(values.clone()), values)
    assert torch.equal(processes.mean(values.clone()), values)
    assert processes.run_on_rank0(lambda: 5) == processes.first_then_others(lambda: 5) == 5
    assert processes.gather("part") == ["part"]


def test_rank_and_device_under_torchrun(launched, two_gpus):
    launched(RANK=3, WORLD_SIZE=4, LOCAL_RANK=1)
    for device in (None, "cuda", "cuda:0"):
        processes = Processes.from_environment(device)
        assert (processes.rank, processes.world_size) == (3, 4)
        assert processes.device == torch.device("cuda:1"), f"each process has its own GPU, given {device}"
    assert Processes.from_environment("cpu").device == torch.device("cpu")
    assert not dist.is_initialized(), "reading the environment communicates nothing"


def test_a_chosen_gpu_without_torchrun(launched, two_gpus):
    """One process, and several that were started by hand with RANK and WORLD_SIZE, keep the GPU that they
    name.
    """
    assert Processes.from_environment("cuda:1").device == torch.device("cuda:1")
    launched(RANK=1, WORLD_SIZE=2)
    assert Processes.from_environment("cuda:1").device == torch.device("cuda:1")
    assert Processes.from_environment("cuda").device == torch.device("cuda:0")


def test_more_processes_than_gpus(launched, two_gpus):
    launched(RANK=2, WORLD_SIZE=3, LOCAL_RANK=2)
    with pytest.raises(ValueError, match=r"process 2 .* no CUDA device of its own: there are 2"):
        Processes.from_environment("cuda")


def test_a_device_that_is_not_there(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda'"):
        Processes.from_environment("cuda")


def test_failures_alone(launched):
    processes = Processes.from_environment("cpu")
    with pytest.raises(OSError, match="full"), processes.raising_together():
        raise OSError("full")
    with processes.raising_together():
        pass
    with pytest.raises(KeyError):
        processes.stop(KeyError("x"))


def test_other_ranks_leave_with_the_exit_code():
    error = RuntimeError("stopped")
    error.exit_code = 143
    with pytest.raises(SystemExit) as left:
        Processes(1, 2).stop(error)
    assert left.value.code == 143


@pytest.mark.parametrize(
    "error, lost",
    [
        (dist.DistBackendError("anything"), True),
        (RuntimeError("[enforce fail at gloo/transport] Connection closed by peer"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("gloo"), False),
    ],
)
def test_how_a_lost_process_shows(error, lost):
    assert lost_process(error) is lost


def test_the_message_about_a_lost_process():
    processes = Processes(1, 2)
    processes.advise(lambda: "the last checkpoint is step 40, continue with --resume runs/a")
    line = str(processes.stopped_by_loss(RuntimeError("gloo:\n  closed")))
    assert line.startswith("rank 1 (")
    assert "step 40" in line
    assert "--resume runs/a" in line
    assert line.endswith("(gloo: closed)")


class Told(Processes):
    """One of several processes on the hosts a, a, b, with what all would tell each other."""

    def __init__(self, rank, told):
        super().__init__(rank, 3)
        self.hosts = ["a", "a", "b"]
        self.told = told

    def exchange(self, value):
        return self.told


@pytest.mark.parametrize(
    "rank, told, error, message",
    [
        (1, ["wrong", None, None], SystemExit, "1"),  # said on this host already
        (2, ["wrong", None, None], RunStopped, r"rank 0 \(a\) failed: wrong"),
        (0, [None, None, "wrong"], RunStopped, r"rank 2 \(b\) failed: wrong"),
        (1, [None, None, "wrong"], SystemExit, "1"),  # rank 0 says it
    ],
)
def test_a_failure_is_told_once_per_host(rank, told, error, message):
    with pytest.raises(error, match=message), Told(rank, told).raising_together():
        pass


@pytest.mark.parametrize("rank, error", [(0, ValueError), (1, SystemExit), (2, ValueError)])
def test_what_all_find_wrong_is_said_once_per_host(rank, error):
    with pytest.raises(error), Told(rank, ["wrong", "wrong", "wrong"]).raising_together():
        raise ValueError("wrong")


def test_facts_are_compared_to_the_rounding_of_floats():
    facts = [
        {"norm": 1.0, "seed": 0, "commit": "a"},
        {"norm": 1.0 + 1e-9, "seed": 0},
        {"norm": 1.0, "seed": 0},
    ]
    Told(0, facts).require_same(facts[0])
    facts[2] = {"norm": 1.1, "seed": None}
    with pytest.raises(
        ValueError, match=r"norm is 1.0 on rank 0 \(a\) and 1.1 on rank 2 \(b\); seed is 0 .* and None"
    ):
        Told(0, facts).require_same(facts[0])


@pytest.mark.parametrize("timeout", [0.5, float("inf"), float("nan")])
def test_a_timeout_that_is_none(timeout):
    with pytest.raises(ValueError, match="collective_timeout"):
        Processes().connect(timeout=timeout)
