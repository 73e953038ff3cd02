"""Notice a host that is cut off, whose connections stay open and silent; TCP takes a quarter of an hour."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import ClassVar, NoReturn

_BEAT, _GOODBYE, _LOST = b".", b"q", b"x"
# Seconds in which a process whose peer has ended may say so itself, which knows more than the heartbeat.
_GRACE = 10.0
# Seconds that somebody who connects has to say who it is, and that the advice may take to look at the disk.
_PROMPT = 5.0


class Heartbeat:
    """Ends this process, with one line, once another gives no sign of life.

    Rank 0 and each other process send each other bytes from a thread of their own, so that hours of work are
    no silence. The main thread may be inside a collective, which nothing interrupts, so the process exits
    from here.

    Args:
        rank: This process's rank.
        names: What to call the processes, by rank.
        patience: Seconds of silence after which another process is given up.

    Attributes:
        advice: Returns what the line says about going on; a run sets it.
    """

    current: ClassVar[Heartbeat | None] = None

    def __init__(self, rank: int, names: list[str], patience: float) -> None:
        self.advice: Callable[[], str] = lambda: "start again"
        self._rank = rank
        self._names = names
        self._patience = patience
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, socket.socket] = {}
        self._heard: dict[int, float] = {}
        self._ended: dict[int, float] = {}
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mvar-heartbeat", daemon=True)

    def listen(self, address: str = "") -> tuple[int, bytes]:
        """Open a port on rank 0 and return it, with a secret that tells the run's processes from others.

        Args:
            address: Where to listen; "" is every address of this host.
        """
        if address:
            self._listener = socket.create_server((address, 0), backlog=1024)
        elif socket.has_dualstack_ipv6():
            self._listener = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        else:
            self._listener = socket.create_server(("", 0), backlog=1024)
        return self._listener.getsockname()[1], secrets.token_bytes(16)

    def start(self, host: str, meeting: tuple[int, bytes]) -> None:
        """Connect with rank 0, or as rank 0 with all others, and begin to beat.

        Args:
            host: The host of rank 0.
            meeting: What `listen` returned on rank 0.

        Raises:
            OSError: they do not meet.
        """
        port, secret = meeting
        if self._listener is None:
            try:
                peer = socket.create_connection((host, port), timeout=self._patience)
            except OSError as error:
                raise OSError(
                    f"{self._names[self._rank]} cannot reach port {port} of {host}: {error}; "
                    "the hosts of a run must reach each other's ports"
                ) from error
            peer.sendall(secret + self._rank.to_bytes(4, "big"))
            self._add(0, peer)
        else:
            with self._listener:
                self._meet(self._listener, secret)
        Heartbeat.current = self
        self._thread.start()

    def _meet(self, listener: socket.socket, secret: bytes) -> None:
        deadline = time.monotonic() + self._patience
        while len(self._peers) < len(self._names) - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                missing = [n for rank, n in enumerate(self._names) if rank and rank not in self._peers]
                raise OSError(
                    f"{', '.join(missing)} did not reach {self._names[0]} within {self._patience:.0f} s; "
                    "the hosts of a run must reach each other's ports"
                ) from None
            peer.settimeout(_PROMPT)
            hello = b""
            with contextlib.suppress(OSError):
                while len(hello) < 20 and (more := peer.recv(20 - len(hello))):
                    hello += more
            if len(hello) == 20 and hello[:16] == secret:
                self._add(int.from_bytes(hello[16:], "big"), peer)
            else:  # a stranger
                peer.close()

    def stop(self, wait: bool = True) -> None:
        """Say goodbye to the others, which then expect no more signs; return when it is said if `wait`."""
        self._finished.set()
        if wait:
            self._thread.join()
        Heartbeat.current = None

    def _add(self, rank: int, peer: socket.socket) -> None:
        peer.setblocking(False)
        self._peers[rank] = peer
        self._heard[rank] = time.monotonic()
        self._selector.register(peer, selectors.EVENT_READ, rank)

    def _watch(self) -> None:
        interval = min(5.0, self._patience / 4)
        next_beat = time.monotonic()
        while not self._finished.is_set():
            for key, _ in self._selector.select(timeout=0.2):
                self._receive(key.data)
            now = time.monotonic()
            if now >= next_beat:
                self._send(_BEAT)
                next_beat = now + interval
            for rank, when in self._heard.items():
                if now - when > self._patience:
                    self._give_up(rank, f"gave no sign of life for {self._patience:.0f} s")
            for rank, when in self._ended.items():
                if now - when > _GRACE:
                    self._give_up(rank, "ended before the run was over")
        self._send(_GOODBYE)
        for peer in self._peers.values():
            peer.close()

    def _receive(self, rank: int) -> None:
        try:
            received = self._peers[rank].recv(4096)
        except BlockingIOError:
            return
        except OSError:  # the connection is broken
            received = b""
        self._heard[rank] = time.monotonic()
        if _LOST in received:
            self._give_up(rank, "ended because another process was lost")
        if not received or _GOODBYE in received:
            self._selector.unregister(self._peers[rank])
            del self._heard[rank]
            if not received:
                self._ended[rank] = time.monotonic()

    def _send(self, sign: bytes) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # full or closed; what is received tells the rest
                peer.send(sign)

    def _give_up(self, rank: int, how: str) -> NoReturn:
        try:
            # On a line of its own, below a progress bar.
            line = f"\nError: {self._names[self._rank]} lost {self._names[rank]}, which {how}: "
            os.write(2, f"{line}{self._prompt_advice()}\n".encode())
            self._send(_LOST)
        finally:  # whatever happens to the line, this process may not live on
            os._exit(1)

    def _prompt_advice(self) -> str:
        """Return the advice, or a short one where the run folder is on a disk that went with the host."""
        answers: list[str] = []
        asking = threading.Thread(target=lambda: answers.append(self.advice()), daemon=True)
        asking.start()
        asking.join(_PROMPT)
        return answers[0] if answers else "the run folder cannot be read now"
