"""Train on two hosts whose link is cut or slow, or one of which is killed; compare with a clean run.

The hosts are two network namespaces of this machine, joined by a veth pair, or for the slow link by two TUN
devices between which this script carries each packet late. Needs root, Linux and iproute2:

    python scripts/two_hosts.py                     # all scenarios, in about five minutes
    python scripts/two_hosts.py --torchrun cut      # one of them, started by torchrun
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from safetensors.numpy import load_file  # noqa: E402

from run_cases import arguments, losses, make_data, wait_for_step  # noqa: E402

HOSTS = ("mvar-a", "mvar-b")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
DEVICE = "mvar0"
PORT = "29531"
ROUND_TRIP, BITS_PER_SECOND = 0.2, 5e6
# Packets that would wait longer are dropped, as by a router.
LONGEST_QUEUE = 0.5
STEPS, SAVE_EVERY, TROUBLE_AT = 20, 5, 8
TIMEOUT = 15


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """Make the two namespaces, and remove them with all that is in them."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False)


def raise_device(host: str, address: str) -> None:
    ip("-n", host, "addr", "add", f"{address}/30", "dev", DEVICE)
    ip("-n", host, "link", "set", DEVICE, "up")


@contextlib.contextmanager
def cable() -> Iterator[None]:
    """Join the hosts by a veth pair."""
    ip("-n", HOSTS[0], "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", HOSTS[1])
    for host, address in zip(HOSTS, ADDRESSES):
        raise_device(host, address)
    try:
        yield
    finally:
        ip("-n", HOSTS[0], "link", "del", DEVICE)


@contextlib.contextmanager
def slow_link() -> Iterator[None]:
    """Join the hosts by TUN devices, since many kernels have no `tc netem`."""
    files = []
    for host, address in zip(HOSTS, ADDRESSES):
        file = os.open("/dev/net/tun", os.O_RDWR)
        IFF_TUN, IFF_NO_PI, TUNSETIFF = 0x1, 0x1000, 0x400454CA
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22s", DEVICE.encode(), IFF_TUN | IFF_NO_PI, b""))
        ip("link", "set", DEVICE, "netns", host)
        raise_device(host, address)
        files.append(file)
    for source, target in (files, reversed(files)):
        waiting: queue.Queue[tuple[float, bytes]] = queue.Queue()
        threading.Thread(target=read_packets, args=(source, waiting), daemon=True).start()
        threading.Thread(target=write_packets, args=(target, waiting), daemon=True).start()
    yield  # the threads and devices end with the script


def read_packets(source: int, waiting: queue.Queue[tuple[float, bytes]]) -> None:
    free_at = 0.0
    while True:
        try:
            packet = os.read(source, 65536)
        except OSError:  # the device went with its host
            return
        now = time.monotonic()
        if free_at - now < LONGEST_QUEUE:
            free_at = max(now, free_at) + 8 * len(packet) / BITS_PER_SECOND
            waiting.put((free_at + ROUND_TRIP / 2, packet))


def write_packets(target: int, waiting: queue.Queue[tuple[float, bytes]]) -> None:
    while True:
        when, packet = waiting.get()
        time.sleep(max(0.0, when - time.monotonic()))
        os.write(target, packet)


def start(rank: int, torchrun: bool, *words: str) -> subprocess.Popen[str]:
    """Start one rank on its host, which has its own name."""
    variables = {**os.environ, "GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = []
    if torchrun:
        meeting = ["--master-addr", ADDRESSES[0], "--master-port", PORT]
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank), *meeting]
    else:
        variables |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT}
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', HOSTS[rank]]
    command = [
        "ip",
        "netns",
        "exec",
        HOSTS[rank],
        *named,
        sys.executable,
        *launcher,
        "-m",
        "mvar_models",
        *words,
    ]
    # A group of its own, so that a kill reaches torchrun's children too.
    return subprocess.Popen(
        command,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def follow(processes: list[subprocess.Popen[str]], since: float) -> None:
    """Wait for both, and show when and with which lines they ended."""
    ended: dict[int, float] = {}

    def wait(rank: int) -> None:
        output = processes[rank].communicate()[0]
        ended[rank] = time.monotonic() - since
        # Neither the progress bar nor what torch says about hosts without a name server.
        noise = ("step/s", "s/step", "socket.cpp")
        lines = [line for line in output.splitlines() if line and not any(word in line for word in noise)]
        errors = [line for line in lines if line.startswith("Error:")]
        print(
            f"  {HOSTS[rank]}: exit {processes[rank].returncode} after {ended[rank]:.1f} s, "
            f"{len(lines)} lines"
        )
        for line in errors or lines[-1:]:
            print(f"    | {line[:300]}", flush=True)

    threads = [threading.Thread(target=wait, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(out: Path, top: Path, torchrun: bool, trouble: str) -> None:
    """Train to the end, through the trouble and a resumption."""
    options = dict(steps=STEPS, save_every=SAVE_EVERY, validate_every=STEPS, collective_timeout=TIMEOUT)
    words = [str(word) for word in arguments(top, out, **options)]
    processes = [start(rank, torchrun, *words) for rank in (0, 1)]
    since = time.monotonic()
    if trouble in ("cut", "killed"):
        wait_for_step(processes[0], out, TROUBLE_AT)
        since = time.monotonic()
        if trouble == "cut":
            ip("-n", HOSTS[0], "link", "set", DEVICE, "down")
            print(f"  link set down after step {TROUBLE_AT}")
        else:
            os.killpg(processes[1].pid, signal.SIGKILL)
            print(f"  {HOSTS[1]} killed with -9 after step {TROUBLE_AT}")
    follow(processes, since)
    if trouble == "cut":
        ip("-n", HOSTS[0], "link", "set", DEVICE, "up")
    if trouble in ("cut", "killed"):
        print("  resumed on both hosts")
        words = ["train", "--resume", str(out), "--device", "cpu"]
        follow([start(rank, torchrun, *words) for rank in (0, 1)], time.monotonic())


def result(out: Path) -> tuple[str, str]:
    """Return digests of the final weights and of every step's losses."""
    weights = hashlib.sha256()
    # Not the file's bytes: safetensors writes metadata in any order.
    for name, tensor in sorted(load_file(out / "model" / "model.safetensors").items()):
        weights.update(name.encode() + tensor.tobytes())
    return weights.hexdigest()[:16], hashlib.sha256(repr(losses(out)).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=["cut", "killed", "slow"], help="cut, killed, slow")
    parser.add_argument("--torchrun", action="store_true", help="start each rank by torchrun")
    given = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    equal = True
    with tempfile.TemporaryDirectory() as folder, hosts():
        top = make_data(Path(folder))
        for scenario in ["clean", *given.scenarios]:
            print(f"{scenario}:", flush=True)
            begun = time.monotonic()
            with slow_link() if scenario == "slow" else cable():
                run(top / scenario, top, given.torchrun, scenario)
            same = result(top / scenario) == result(top / "clean")
            equal &= same
            digests = "weights {}, losses {}".format(*result(top / scenario))
            verdict = "" if scenario == "clean" else ", bit-equal to the clean run" if same else ", DIFFERENT"
            print(f"  {time.monotonic() - begun:.0f} s in all; {digests}{verdict}", flush=True)
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
