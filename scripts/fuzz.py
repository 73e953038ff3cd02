"""Mutate every kind of file that we read from strangers, and hold the readers to one line.

    python scripts/fuzz.py --inputs 10000 --seed 0

Each input is a small sound folder with one file changed: bytes flipped, cut, inserted or spliced; JSON and
YAML values of other types, huge, nested, missing or new; members of archives damaged. A reader, or for
one input in `COMMANDS_EVERY` a command, must end well or with one line that names the file. Prints what did
not, by kind, and the peak memory and longest time; exits with 1 if there is any.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from mutations import mutate
from PIL import Image

from mvar_models import MVAR, VQVAE, MVARConfig, MVARPipeline, VQVAEConfig
from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.cli.common import in_one_line
from mvar_models.cli.main import main as mvar
from mvar_models.cli.samples_folder import Samples, images_of, read_samples, write_samples
from mvar_models.data.open import open_images
from mvar_models.environment import peak_resident_bytes
from mvar_models.evaluation.features.network import feature_network
from mvar_models.evaluation.image_sets import batches
from mvar_models.evaluation.open_sets import open_set
from mvar_models.evaluation.statistics_file import has_statistics, read_statistics
from mvar_models.evaluation.sweep import preset_grid, sweep, write_summary
from mvar_models.files import write_text
from mvar_models.sampling.settings import SamplingSettings, read_preset
from mvar_models.tokens.folder import TokenFolder, verify_tokens
from mvar_models.tokens.writer import TokenWriter
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.runs import start_vqvae_run, train_vqvae

COMMANDS_EVERY = 40
_LONGEST = 60  # seconds
# What Python says about itself, and never about a file.
FORBIDDEN = (
    "Traceback", "not supported between", "indices must be", "has no attribute", "NoneType", "unpack",
    "not iterable", "not subscriptable", "unhashable", "object is not", "positional argument",
    "unexpected keyword", "unsupported operand", "recursion", "<class '",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A sound folder, the files in it that are mutated, who reads them, and the commands that do."""

    name: str
    files: tuple[str, ...]
    read: Callable[[Path], object]
    commands: tuple[str, ...] = ()


def make_seeds(root: Path) -> None:
    """Write small sound files of every kind."""
    torch.manual_seed(0)
    shape = dict(vocab_size=24, z_channels=4, sides=(1, 2))
    vqvae = VQVAE(VQVAEConfig(channels=32, channel_multipliers=(1, 1), blocks_per_level=1, **shape)).eval()
    config = MVARConfig(
        depth=1,
        width=32,
        num_heads=2,
        num_classes=2,
        kernel_size=3,
        dense_scales=1,
        class_names=("a", "b"),
        **shape,
    )
    pipeline = MVARPipeline(MVAR(config).eval(), vqvae)
    pipeline.save_pretrained(root / "model" / "m")
    shutil.copytree(root / "model" / "m" / "vqvae", root / "vqvae" / "v")
    (root / "pth").mkdir()
    torch.save({"state_dict": vqvae.state_dict()}, root / "pth" / "w.pth")
    (root / "preset").mkdir()
    SamplingSettings(1.5, 3, 0.9).write(root / "preset" / "preset.json")
    settings, images = SamplingSettings(1.5, 4, 0.9), images_of([0, 1], 0, None)
    samples = Samples(str(root / "model" / "m"), None, None, "float32", settings, images)
    write_samples(pipeline, samples, root / "samples" / "s", 2)
    values = np.random.default_rng(0)
    pixels = values.integers(0, 255, (12, 4, 4, 3), dtype=np.uint8)
    (root / "npz").mkdir()
    np.savez_compressed(root / "npz" / "a.npz", arr_0=pixels, arr_1=np.arange(12) % 2)
    with zipfile.ZipFile(root / "npz" / "b.npz", "w", zipfile.ZIP_LZMA) as archive:
        with archive.open("images.npy", "w") as entry:
            np.lib.format.write_array(entry, pixels)
        archive.comment = b'{"per_class": 6}'
    numbers = values.random((20, 48))
    mean = {"network": np.array("pixels"), "mu": numbers.mean(0), "sigma": np.cov(numbers.T)}
    more = {"count": np.array(20), "size": np.array([4, 4]), "features": numbers, "labels": np.arange(20) % 2}
    np.savez(root / "npz" / "statistics.npz", **mean, **more)
    for label in ("ant", "bee"):
        (root / "images" / "i" / label).mkdir(parents=True)
        for index, suffix in enumerate(("png", "jpg", "gif", "bmp", "webp", "tif")):
            pixels = values.integers(0, 255, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / "i" / label / f"{index}.{suffix}")
    write_text(root / "images" / "i" / "held_out.txt", "ant/0.png\nbee/0.png\n")
    source = open_images(root / "images" / "i", vqvae.config.resolution)
    for name in ("tokens", "continued"):
        TokenWriter(vqvae, source, root / name / "t", shard_size=6).write()
    settings = {name: getattr(TokenFolder(root / "continued" / "t").index, name) for name in _SETTINGS}
    (root / "continued" / "t" / "index.json").unlink()
    write_text(root / "continued" / "t" / "settings.json", json.dumps(settings, indent=2))
    grid = preset_grid([1.0, 2.0], [0], [0.9])
    cells = sweep(pipeline, lambda file: {"fd": 1.0}, grid, root / "sweep" / "s", settings={}, per_class=1)
    write_summary(root / "sweep" / "s", cells, "fd")
    run = start_vqvae_run(
        data=str(root / "images" / "i"), out=str(root / "run" / "r"), steps=2, batch_size=2, sides=(1, 8),
        channel_multipliers=(1, 1, 1), vocab_size=24, z_channels=4, adversarial=0.1, adversarial_start=0,
        save_every=1, device="cpu", sample_every=0,
    )  # fmt: skip
    train_vqvae(run)


_SETTINGS = (
    "format", "sides", "vocab_size", "vqvae_identity", "data_fingerprint", "class_names", "mirror_safe",
    "num_variants", "seed", "shard_size",
)  # fmt: skip


class Readers:
    """The readers of each folder, and what they compare it with."""

    def __init__(self, root: Path) -> None:
        self.pipeline = MVARPipeline.from_pretrained(root / "model" / "m")
        self.vqvae = self.pipeline.vqvae
        self.images = open_images(root / "images" / "i", self.vqvae.config.resolution)

    def npz(self, folder: Path) -> None:
        for file in sorted(folder.glob("*.npz")):
            if has_statistics(file):
                read_statistics(file, feature_network("pixels"))
            else:
                found = open_set(file)
                list(batches(found, 5))
                found.read(np.arange(min(2, len(found))))

    def folder(self, folder: Path) -> None:
        source = open_images(folder / "i", self.vqvae.config.resolution)
        source.readable(np.arange(len(source)))
        _ = source.split

    def tokens(self, folder: Path) -> None:
        for tokens in TokenFolder(folder / "t").token_sets(self.vqvae):
            tokens.codes[0, np.arange(len(tokens))]
        verify_tokens(folder / "t")

    def run(self, folder: Path) -> None:
        run = RunFolder(folder / "r")
        run.read_settings()
        run.add_start({})
        step = run.last_step()
        run.forget_after(step)
        if step:
            run.checkpoint(step)
            read_state(run.checkpoints / f"step-{step:06d}" / "model.safetensors")

    def sweep(self, folder: Path) -> None:
        grid = preset_grid([1.0, 2.0], [0], [0.9])
        cells = sweep(self.pipeline, lambda file: {"fd": 1.0}, grid, folder / "s", settings={}, per_class=1)
        write_summary(folder / "s", cells, "fd")
        read_preset(folder / "s" / "preset.json")

    def samples(self, folder: Path) -> None:
        read_samples(folder / "s" / "samples.json")
        found = open_set(folder / "s")
        found.read(np.arange(len(found)))

    def targets(self, root: Path) -> list[Target]:
        step = "r/checkpoints/step-000002"
        cell = "s/guidance1.0-k0-p0.9.json"
        sample = "sample --n 1 --labels 0 --device cpu -o {0}/out --model"
        evaluate = "evaluate {0}/a.npz --reference {0}/%s --features pixels -o {0}/out"
        return [
            Target("model", ("m/config.json", "m/vqvae/config.json", "m/model.safetensors"),
                   lambda at: MVARPipeline.from_pretrained(at / "m"), (f"{sample} {{0}}/m",)),
            Target("vqvae", ("v/config.json", "v/model.safetensors"),
                   lambda at: VQVAE.from_pretrained(at / "v"),
                   (f"tokenize --accept-psnr --data {root}/images/i --vqvae {{0}}/v -o {{0}}/out",)),
            Target("pth", ("w.pth",), lambda at: read_state(at / "w.pth"), (f"{sample} {{0}}/w.pth",)),
            Target("preset", ("preset.json",), lambda at: read_preset(at / "preset.json"),
                   (f"{sample} {root}/model/m --preset {{0}}/preset.json",)),
            Target("samples", ("s/samples.json", "s/00000_0.png"), self.samples,
                   ("sample --again {0}/s/samples.json -o {0}/out --device cpu",)),
            Target("npz", ("a.npz", "b.npz", "statistics.npz"), self.npz,
                   (evaluate % "b.npz", evaluate % "statistics.npz")),
            Target("images", ("i/held_out.txt", *(f"i/ant/{index}.{suffix}" for index, suffix in enumerate(
                ("png", "jpg", "gif", "bmp", "webp", "tif")))), self.folder),
            Target("tokens", ("t/index.json", "t/examples.npy", "t/shard-00000.npy", "t/shard-00000.json"),
                   self.tokens, ("tokenize --verify --out {0}/t",)),
            Target("continued", ("t/settings.json", "t/shard-00000.npy", "t/shard-00001.json"),
                   lambda at: TokenWriter(self.vqvae, self.images, at / "t", shard_size=6).write()),
            Target("run", ("r/config.yaml", "r/metrics.jsonl", "r/environment.json", f"{step}/progress.json",
                           f"{step}/task.pt", f"{step}/model.safetensors"), self.run,
                   ("train-vqvae --resume {0}/r --device cpu",)),
            Target("sweep", (cell, "s/settings.json", "s/preset.json"), self.sweep),
        ]  # fmt: skip


def judge(error: BaseException, names: tuple[str, ...]) -> str:
    """Return what is wrong with how an input ended, or ""."""
    shown = in_one_line(error) if isinstance(error, Exception) else error
    if shown is error and not hasattr(error, "format_message"):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return f"traceback: {type(error).__name__} {str(error)[:100]} ({where})"
    said = str(shown)
    wrong = next((phrase for phrase in FORBIDDEN if phrase in said), "")
    if wrong or "\n" in said:
        return f"says {wrong or 'more than a line'!r}: {said[-200:]}"
    return "" if any(name in said for name in names) else f"names nothing: {said[:200]}"


@dataclass
class Found:
    """What a run of the fuzzer found."""

    inputs: int
    refused: int
    wrong: dict[str, list[str]]
    slowest: tuple[float, str]
    by_target: dict[str, int]


def fuzz(inputs: int, seed: int, place: Path, commands_every: int = COMMANDS_EVERY) -> Found:
    """Read `inputs` mutated inputs in folders below `place`."""
    root, here = place / "seeds", place / "here"
    root.mkdir()
    here.mkdir()
    make_seeds(root)
    targets = Readers(root).targets(root)
    before, counts = _listing(root), collections.Counter[str]()
    wrong: dict[str, list[str]] = collections.defaultdict(list)
    refused, slowest = 0, (0.0, "")
    old = Path.cwd()
    os.chdir(here)
    for number in range(inputs):
        chance = random.Random(f"{seed}-{number}")
        target = targets[number % len(targets)]
        chosen = chance.choice(target.files)
        work = place / f"work{number}"
        shutil.copytree(root / target.name, work)
        file = work / chosen
        file.write_bytes(mutate(file.read_bytes(), file.suffix, chance))
        text = ""
        if target.commands and chance.randrange(commands_every) == 0:
            text = chance.choice(target.commands).format(work)
        counts[f"{target.name} by a command" if text else target.name] += 1
        what = f"input {number}, {target.name}/{chosen} {text}"
        # Two networks that do not fit are named as such: neither file alone is wrong.
        names, start = (str(work), file.name, "the VQVAE does not fit the model"), time.perf_counter()
        try:
            with _quiet():
                _run(text) if text else target.read(work)
        except BaseException as error:  # SystemExit and a reader that exits too
            if isinstance(error, KeyboardInterrupt):
                raise
            refused += 1
            fault = judge(error, names)
            if fault:
                wrong[fault.split("work")[0][:120]].append(f"{what}: {fault}")
        slowest = max(
            slowest, (time.perf_counter() - start, f"input {number}, {target.name}/{chosen} {text}")
        )
        shutil.rmtree(work)
    os.chdir(old)
    strays = [str(path) for path in place.iterdir() if path.name not in ("seeds", "here")]
    if strays or any(here.iterdir()) or _listing(root) != before:
        wrong["wrote outside its folder"].append(str(strays or list(here.iterdir()) or "the seeds changed"))
    return Found(inputs, refused, dict(wrong), slowest, dict(counts))


def _listing(root: Path) -> list[tuple[str, int, int]]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _run(text: str) -> None:
    result = CliRunner().invoke(mvar, text.split())
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code:
        raise ValueError(result.output.strip().splitlines()[-1] if result.output.strip() else "nothing said")


@contextlib.contextmanager
def _quiet() -> Any:
    def stop(*_: object) -> None:
        raise RuntimeError(f"took more than {_LONGEST} seconds")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handler = signal.signal(signal.SIGALRM, stop)
        signal.alarm(_LONGEST)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, handler)


def report(found: Found) -> int:
    """Print what was found; return the exit status."""
    for count, (_, inputs) in enumerate(sorted(found.wrong.items(), key=lambda pair: -len(pair[1]))):
        if count < 40:
            print(f"{len(inputs)} x {inputs[0]}")
    peak = peak_resident_bytes() or 0
    print(", ".join(f"{name} {count}" for name, count in sorted(found.by_target.items())))
    count = sum(map(len, found.wrong.values()))
    print(
        f"{found.inputs:,} inputs: {found.refused:,} refused in one line, {count} wrong; "
        f"peak memory {peak / 1e9:.2f} GB, longest {found.slowest[0]:.1f} s ({found.slowest[1]})"
    )
    return int(bool(found.wrong))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as place:
        return report(fuzz(options.inputs, options.seed, Path(place)))


if __name__ == "__main__":
    sys.exit(main())
