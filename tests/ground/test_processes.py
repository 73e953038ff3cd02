"""The processes of a run: what they share, what ends them together, and the heartbeat."""

import contextlib
import socket
import threading
import time

import pytest
import torch
import torch.distributed as dist

from mvar_models.distributed import Processes, RunStopped, heartbeat, lost_process
from mvar_models.distributed.heartbeat import Heartbeat


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


NAMES = ["rank 0 (a)", "rank 1 (b)", "rank 2 (c)"]


class Observed(Heartbeat):
    """Notes what it would end the process for, and beats no more."""

    lost = None

    def _watch(self):
        with contextlib.suppress(SystemExit):
            super()._watch()

    def _give_up(self, rank, how):
        self._send(heartbeat._LOST)
        self.lost = (rank, how)
        raise SystemExit

    def hang(self):
        """Beat no more, as a host that is cut off, whose connections stay open."""
        self._send = lambda sign: None


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setattr(heartbeat, "_GRACE", 0.3)
    all_three = [Observed(rank, NAMES, 1.0) for rank in range(3)]
    meeting = all_three[0].listen()
    starts = [threading.Thread(target=each.start, args=("127.0.0.1", meeting)) for each in all_three]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    yield all_three
    for each in all_three:
        each.stop()


def wait_until_lost(*some):
    patience = time.monotonic() + 20
    while time.monotonic() < patience and not all(each.lost for each in some):
        time.sleep(0.02)
    return [each.lost for each in some]


def test_all_beat(three):
    time.sleep(2.5)
    assert [each.lost for each in three] == [None, None, None]
    assert Heartbeat.current in three


def test_one_falls_silent(three):
    """Rank 2, which has no connection to rank 1, hears of it from rank 0."""
    three[1].hang()
    first, other = wait_until_lost(three[0], three[2])
    assert first == (1, "gave no sign of life for 1 s")
    assert other == (0, "ended because another process was lost")


def test_one_leaves_without_a_goodbye(three):
    three[2]._peers[0].shutdown(2)
    assert wait_until_lost(three[0])[0] == (2, "ended before the run was over")


def test_a_goodbye_is_no_loss(three):
    three[2].stop()
    time.sleep(1.5)
    assert three[0].lost is None
    assert three[1].lost is None


def test_the_line_and_the_exit(monkeypatch):
    written, codes = [], []
    monkeypatch.setattr(heartbeat.os, "write", lambda file, text: written.append((file, text.decode())))
    monkeypatch.setattr(heartbeat.os, "_exit", codes.append)
    one = Heartbeat(1, NAMES, 5.0)
    one.advice = lambda: "the last checkpoint is step 40"
    one._give_up(0, "gave no sign of life for 5 s")
    line = "\nError: rank 1 (b) lost rank 0 (a), which gave no sign of life for 5 s: "
    assert written == [(2, line + "the last checkpoint is step 40\n")]
    assert codes == [1]


def test_a_port_that_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with pytest.raises(OSError, match=rf"rank 1 \(b\) cannot reach port {closed} of 127.0.0.1: .*refused"):
        Heartbeat(1, NAMES, 2.0).start("127.0.0.1", (closed, b""))


def test_strangers_do_not_keep_the_processes_apart(monkeypatch):
    monkeypatch.setattr(heartbeat, "_PROMPT", 0.2)
    first, second = (Observed(rank, NAMES[:2], 5.0) for rank in range(2))
    port, secret = first.listen("127.0.0.1")
    with contextlib.ExitStack() as stack:
        for said in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n    ",
            secret[:3],
        ):  # a silent one, a browser, one cut short
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(said)
        starts = [
            threading.Thread(target=each.start, args=("127.0.0.1", (port, secret)))
            for each in (first, second)
        ]
        for start in starts:
            start.start()
        for start in starts:
            start.join(20)
        assert list(first._peers) == [1] and list(second._peers) == [0]
        first.stop()
        second.stop()


def test_who_does_not_come_is_named():
    first = Heartbeat(0, NAMES, 0.3)
    meeting = first.listen("127.0.0.1")
    with pytest.raises(OSError, match=r"rank 1 \(b\), rank 2 \(c\) did not reach rank 0 \(a\) within 0 s"):
        first.start("127.0.0.1", meeting)


@pytest.mark.parametrize("advice", ["raises", "hangs"])
def test_the_end_comes_whatever_the_advice_does(monkeypatch, advice):
    written, codes, forever = [], [], threading.Event()
    monkeypatch.setattr(heartbeat, "_PROMPT", 0.2)
    monkeypatch.setattr(heartbeat.os, "write", lambda file, text: written.append(text.decode()))
    monkeypatch.setattr(heartbeat.os, "_exit", codes.append)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    one = Heartbeat(1, NAMES, 5.0)
    one.advice = forever.wait if advice == "hangs" else lambda: 1 / 0
    one._give_up(0, "gave no sign of life for 5 s")
    assert codes == [1]
    assert "the run folder cannot be read now" in written[0]
    forever.set()
