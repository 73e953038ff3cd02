"""Released checkpoints at full size, from a Hub on this machine: cut connections, offline use, memory.

    python scripts/full_size_hub.py [--depth 16 --depth 20] [--folder SCRATCH]

The files have the released names, entries, shapes and types; their weights follow the golden tests' formula.
They take about 1.7 GB for depth 16 and 2.4 GB more for 20.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from golden_weights import _LEFT_ALONE, formula
from hub_server import environment, hub

_OFFICIAL = json.loads(
    (Path(__file__).parents[1] / "tests" / "golden" / "official_state_dicts.json").read_text()
)
_REPOSITORY = "FoundationVision/var"
_CUT = 600_000_000

# Anonymous memory is what loading itself allocates. Pages of the mapped file are the operating system's
# cache, which it can drop at any time.
_LOAD = """
import sys, threading, time, torch
from pathlib import Path
from mvar_models import VAR, VQVAE

def resident(kind):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024

peak, running = 0, True
def watch():
    global peak
    while running:
        peak = max(peak, resident("RssAnon:"))
        time.sleep(0.001)

cls, name, dtype = {"VAR": VAR, "VQVAE": VQVAE}[sys.argv[1]], sys.argv[2], getattr(torch, sys.argv[3])
cls.from_pretrained("var-digits" if cls is VAR else "vae-digits")  # imports and first calls are not measured
before = resident("RssAnon:")
thread = threading.Thread(target=watch); thread.start()
start = time.perf_counter()
model = cls.from_pretrained(name, dtype=dtype)
seconds = time.perf_counter() - start
running = False; thread.join()
size = sum(p.numel() * p.element_size() for p in model.state_dict().values())
total = sum(float(p.float().abs().mean()) for p in model.parameters())
grown, mapped = peak - before, resident("RssFile:")
print(f"{size / 1e6:.0f} MB of {sys.argv[3]}, anonymous memory {grown / 1e6:.0f} MB = {grown / size:.2f} x,",
      f"{seconds:.1f} s, mapped pages after reading all weights {mapped / 1e6:.0f} MB,",
      f"fingerprint {total:.6f}")
"""


def make(path: Path, name: str, prefix: str) -> None:
    """Write the file of a released name, entry by entry as the released programs save it."""
    state = {}
    for entry, (shape, dtype) in _OFFICIAL[f"{_REPOSITORY}:{name}"].items():
        left_alone = entry.endswith(_LEFT_ALONE) or "float" not in dtype
        state[entry] = (
            torch.zeros(shape, dtype=getattr(torch, dtype))
            if left_alone
            else formula(entry, tuple(shape), prefix)
        )
    torch.save(state, path)


def load(kind: str, name: str, dtype: str, server: object, cache: Path) -> str:
    """Load a model in a process of its own and return the line that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, kind, name, dtype],
        capture_output=True,
        text=True,
        env=environment(server, cache),
    )
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def resave(source: Path, folder: Path) -> None:
    """Save a released .pth as a folder with safetensors, in a process of its own."""
    code = "import sys, mvar_models as m; m.VAR.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(source), str(folder)], check=True)


@click.command()
@click.option(
    "--depth",
    "depths",
    type=int,
    multiple=True,
    default=(16, 20),
    help="Depths of the VARs. The first is downloaded; all are loaded.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Scratch space. Default: a temporary folder.",
)
def main(depths: tuple[int, ...], folder: Path | None) -> None:
    """Make the files, serve them, and print how each is loaded."""
    with tempfile.TemporaryDirectory() as temporary:
        scratch = folder or Path(temporary)
        served, cache = scratch / "hub", scratch / "cache"
        (served / _REPOSITORY).mkdir(parents=True, exist_ok=True)
        for name, prefix in [
            ("vae_ch160v4096z32.pth", "vae."),
            *((f"var_d{depth}.pth", "model.") for depth in depths),
        ]:
            path = served / _REPOSITORY / name
            if not path.is_file():
                make(path, name, prefix)
            click.echo(f"{name}: {path.stat().st_size / 1e6:.0f} MB")
        first = f"var-d{depths[0]}"
        with hub(served) as server:
            server.cut_after = _CUT
            start = time.perf_counter()
            line = load("VAR", first, "float32", server, cache)
            click.echo(f"{first} from the Hub, its connection cut after {_CUT / 1e6:.0f} MB: {line}")
            click.echo(f"  {time.perf_counter() - start:.1f} s in all")
            for command, address, asked, _ in server.requests:
                if command == "GET" and "/resolve/" in address:
                    click.echo(f"  GET {address.rsplit('/', 1)[-1]}, range {asked or 'whole'}")
            line = load("VQVAE", "vae-ch160v4096z32", "float32", server, cache)
            click.echo(f"vae-ch160v4096z32 from the Hub: {line}")
        click.echo(f"{first} offline, from the cache: {load('VAR', first, 'float32', None, cache)}")
        for depth in depths:
            path = served / _REPOSITORY / f"var_d{depth}.pth"
            for dtype in ("float32", "float16", "bfloat16"):
                click.echo(f"d{depth} .pth: {load('VAR', str(path), dtype, None, cache)}")
            resave(path, scratch / f"saved{depth}")
            for dtype in ("float32", "bfloat16"):
                line = load("VAR", str(scratch / f"saved{depth}"), dtype, None, cache)
                click.echo(f"d{depth} .safetensors: {line}")


if __name__ == "__main__":
    main()
