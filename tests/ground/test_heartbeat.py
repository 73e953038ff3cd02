"""A process that falls silent or leaves without a goodbye is given up; one that says goodbye is not."""

import contextlib
import socket
import threading
import time

import pytest

from mvar_models.distributed import heartbeat
from mvar_models.distributed.heartbeat import Heartbeat

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
