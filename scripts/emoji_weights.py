"""Make the emoji models from nothing: `python scripts/emoji_weights.py` (or `make weights-emoji`).

The stages are images, vae, perceptual, tokens, var, mvar and further. The VQVAE, the VAR and the MVAR are
rounded to half precision and stored in the package's weights. Stage further, which is not stored, trains the
VAR for as long as stage mvar trains the MVAR that is made of it, so that the two compare. A stage whose
result stands is skipped. One that takes longer than --minutes is stopped with its work saved, and the next
call continues it, so the whole is made in as many calls as it takes.

Why the VQVAE has two stages: 4,000 steps on pixels reach 28.1 dB on held-out images, but a Frechet distance
of 87.5, above the 81.9 of the images blurred by one pixel. 1,500 more steps with the perceptual loss keep
28.1 dB at 70.3 (453 images; other real ones are at 57.9).

Why the VAR grows scale by scale: the coarse ones, which make the shape, get all 6,000 steps in the time of
3,400 whole ones, and stop improving before the end; the last one gets 2,400 and is what the fine-tuning
still improves (docs/measurements.md has the curves).

The weights are used under their names after the zoo has entries for them; the last call prints those.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mvar_models
from mvar_models.checkpoints.push import CardFacts, model_card
from mvar_models.files import write_text

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "mvar_models" / "weights" / "emoji"
MOST_BYTES = 25_000_000
STAGES = ["images", "vae", "perceptual", "tokens", "var", "mvar", "further"]
# Stages whose model goes into the package: its class and its name.
STORED = {
    "perceptual": ("VQVAE", "vae-emoji"),
    "var": ("VAR", "var-emoji"),
    "mvar": ("MVAR", "mvar-emoji"),
}


@dataclass(frozen=True)
class Recipe:
    """Every hyperparameter, as options of the commands.

    Attributes:
        vae: Of `mvar train-vqvae`, on pixels.
        perceptual: Of `mvar train-vqvae`, which trains the result further with a perceptual loss.
        tokens: Of `mvar tokenize`. The images hold their mirrors already, where one changes nothing.
        var: Of `mvar train`, a VAR from scratch.
        windows: Of `mvar finetune`, which makes that VAR an MVAR.
        tuned: Of `mvar finetune`, for the MVAR and for the VAR that is trained further, for as long.
        presets: How the stored transformers draw when nothing else is asked for: fields of their
            configurations.
    """

    vae: dict[str, str] = field(
        default_factory=lambda: {
            "steps": "4000",
            "batch-size": "16",
            "channels": "32",
            "channel-multipliers": "1,2,2",
            "sides": "1,2,3,4,5,6,8,10,13,16",
            "vocab-size": "1024",
            "z-channels": "16",
            "ema": "0.998",
            "save-every": "200",
            "validate-every": "500",
        }
    )
    perceptual: dict[str, str] = field(
        default_factory=lambda: {
            "steps": "1500",
            "batch-size": "16",
            "lr": "3e-4",
            "ema": "0.998",
            "perceptual": "0.1",
            "perceptual-network": "efficientnet-lite0",
            "save-every": "100",
            "validate-every": "250",
        }
    )
    tokens: dict[str, str] = field(default_factory=lambda: {"copies": "1"})
    var: dict[str, str] = field(
        default_factory=lambda: {
            "arch": "var",
            "depth": "4",
            "width": "256",
            "num-heads": "4",
            "schedule": "progressive",
            "steps": "6000",
            "batch-size": "8",
            "lr": "8e-4",
            "ema": "0.999",
            "save-every": "200",
            "validate-every": "600",
        }
    )
    windows: dict[str, str] = field(default_factory=lambda: {"kernel-size": "7", "dense-scales": "8"})
    tuned: dict[str, str] = field(
        default_factory=lambda: {
            "steps": "2000",
            "batch-size": "8",
            "lr": "5e-4",
            "ema": "0.999",
            "save-every": "100",
            "validate-every": "300",
        }
    )
    # The coarse scales decide the class, and a linear schedule hardly guides them. For 51 % of MVAR's images
    # the nearest real emoji is of the right class; for 42 % with linear guidance of 2.5 and top_p 0.7, whose
    # Frechet distance is 145 instead of 140 (docs/measurements.md). VAR gets the same preset.
    presets: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            name: {"guidance_scale": 1.0, "guidance_schedule": "constant", "top_k": 0, "top_p": 0.6}
            for name in ("var-emoji", "mvar-emoji")
        }
    )


@dataclass(frozen=True)
class Chain:
    """Where everything lies, and how long a stage may take in one call.

    Attributes:
        work: Folder of the images, the codes and the runs.
        weights: Folder of the half-precision models.
        recipe: The hyperparameters.
        images: Folder of class folders; fetched into `work` if None.
        mirrored: The same with mirrors, for the transformers; fetched into `work` if None.
        archives: Folder that keeps the fetched packages; in `work` if None.
        minutes: Time of a stage in one call.
    """

    work: Path
    weights: Path = WEIGHTS
    recipe: Recipe = field(default_factory=Recipe)
    images: Path | None = None
    mirrored: Path | None = None
    archives: Path | None = None
    minutes: float = 120.0

    def make(self, only: str | None = None) -> None:
        """Run the stages whose results are missing, or one of them.

        Raises:
            SystemExit: a stage failed or ran out of time; the message says how to continue.
        """
        work, recipe = self.work, self.recipe
        images, mirrored = self.images or work / "images", self.mirrored or work / "mirrored"
        tokens, vae = work / "tokens", work / "vae" / "model"
        # Codes are made with the rounded VQVAE, the one that will decode them, and fine-tuning begins with
        # the rounded VAR, which whoever has the package can repeat.
        rounded = self.weights / "vae-emoji"
        codes = {"data": str(tokens), "vqvae": str(rounded)}
        tuned = {"model": str(self.weights / "var-emoji"), **codes, **recipe.tuned}
        stages = {
            "images": lambda: self._fetch(images, mirrored),
            "vae": lambda: self._train("train-vqvae", "vae", {"data": str(images), **recipe.vae}),
            "perceptual": lambda: self._train(
                "train-vqvae", "perceptual", {"model": str(vae), "data": str(images), **recipe.perceptual}
            ),
            "tokens": lambda: self._tokenize(mirrored, tokens, rounded),
            "var": lambda: self._train("train", "var", {**codes, **recipe.var}),
            "mvar": lambda: self._train("finetune", "mvar", {"arch": "mvar", **recipe.windows, **tuned}),
            "further": lambda: self._train("finetune", "further", {"arch": "var", **tuned}),
        }
        work.mkdir(parents=True, exist_ok=True)
        for name, stage in stages.items():
            if only not in (None, name):
                continue
            stage()
            if name in STORED:
                self._store(*STORED[name], work / name / "model")

    def _fetch(self, images: Path, mirrored: Path) -> None:
        archives = ["--archives", str(self.archives or self.work / "archives")]
        for folder, options in ((images, []), (mirrored, ["--mirrors"])):
            if folder.exists():
                print(f"images: {folder} stands")
                continue
            script = str(HERE / "fetch_emoji.py")
            self._run("images", [sys.executable, script, str(folder), *options, *archives])

    def _tokenize(self, images: Path, tokens: Path, vqvae: Path) -> None:
        if (tokens / "index.json").exists():
            print(f"tokens: {tokens} stands")
            return
        options = {"data": str(images), "vqvae": str(vqvae), "out": str(tokens), **self.recipe.tokens}
        self._run("tokens", _command("tokenize", options))

    def _train(self, command: str, name: str, options: dict[str, str]) -> None:
        run = self.work / name
        if (run / "model" / "config.json").exists():
            print(f"{name}: {run / 'model'} stands")
            return
        begun = any((run / "checkpoints").glob("step-*"))
        if not begun:
            # A run that was stopped before its first checkpoint has nothing to continue from.
            shutil.rmtree(run, ignore_errors=True)
        self._run(name, _command(command, {"resume": str(run)} if begun else {**options, "out": str(run)}))

    def _run(self, name: str, command: list[str]) -> None:
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        with subprocess.Popen(command) as process:
            try:
                code = process.wait(timeout=self.minutes * 60)
            except subprocess.TimeoutExpired:
                # The training commands save on this signal; what tokenize has written stays.
                process.terminate()
                process.wait()
                raise SystemExit(f"{name}: {self.minutes:g} minutes are over; run this again") from None
        if code:
            raise SystemExit(f"{name}: exit code {code}; what it printed says why")

    def _how(self, name: str) -> list[str]:
        """Return the lines of a card that say what the model was trained on, and with which commands."""
        recipe = self.recipe
        commands = {
            "vae-emoji": [("train-vqvae", recipe.vae), ("train-vqvae", recipe.perceptual)],
            "var-emoji": [("train", recipe.var)],
            "mvar-emoji": [
                ("finetune", {"model": "var-emoji", "arch": "mvar", **recipe.windows, **recipe.tuned})
            ],
        }[name]
        return [
            "## How it was made",
            "",
            "`make weights-emoji`: Fluent 3D and Noto emoji of 64 px in 18 classes, an eighth of them held",
            "out by code point. Their licences are in NOTICE, in the folder above. What it runs, without",
            "--data, --vqvae and --out:",
            "",
            "```sh",
            *(_how_of(command, options) for command, options in commands),
            "```",
        ]

    def _store(self, class_name: str, name: str, folder: Path) -> None:
        """Round a finished network to half precision and write it with its card; print its zoo entry."""
        target = self.weights / name
        made = folder / "model.safetensors"
        stored = target / "model.safetensors"
        if stored.exists() and stored.stat().st_mtime >= made.stat().st_mtime:
            print(f"{name}: {target} stands")
            return
        model, draws = getattr(mvar_models, class_name).from_pretrained(folder), class_name != "VQVAE"
        if draws:
            # The run names the VQVAE by its folder, the package by its name.
            preset = self.recipe.presets.get(name, {})
            model.config = model.config.replace(vqvae="vae-emoji", **preset)
        target.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(target, dtype=torch.float16)
        loader = f"{class_name}Pipeline" if draws else class_name
        facts = CardFacts(loader, model.config, model.num_parameters(), generates=draws)
        card = str(model_card(facts, name, license="mit"))
        write_text(target / "README.md", card + "\n".join(["", *self._how(name), ""]))
        shutil.copyfile(HERE / "emoji_notice.txt", self.weights / "NOTICE")
        total = sum(file.stat().st_size for file in self.weights.glob("*/model.safetensors"))
        if total > MOST_BYTES:
            raise SystemExit(
                f"{self.weights} holds {total / 1e6:.1f} MB of weights, more than {MOST_BYTES / 1e6:.0f}"
            )
        print(
            f"{name}: {stored.stat().st_size / 1e6:.1f} MB in {target} ({total / 1e6:.1f} MB in all); "
            "zoo entry:\n"
            f'  _embedded("emoji", "{name}", model_type="{model.config.model_type}", resolution=64, '
            f'parameters="{model.num_parameters() / 1e6:.2f} M"),'
        )


def _how_of(command: str, options: dict[str, str]) -> str:
    return f"mvar {command} " + " ".join(f"--{option} {value}" for option, value in options.items())


def _command(name: str, options: dict[str, str]) -> list[str]:
    pairs = [part for option, value in options.items() for part in (f"--{option}", value)]
    return [sys.executable, "-m", "mvar_models", name, *pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/emoji"), help="folder of runs (default: runs/emoji)"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the half-precision models")
    parser.add_argument("--images", type=Path, help="folder that fetch_emoji.py laid out, if there is one")
    parser.add_argument("--mirrored", type=Path, help="folder that fetch_emoji.py laid out with --mirrors")
    parser.add_argument("--archives", type=Path, help="folder that keeps the fetched packages")
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="time of a stage in one call (default: 120)"
    )
    parser.add_argument("--only", choices=STAGES, help="one stage alone")
    options = vars(parser.parse_args())
    only = options.pop("only")
    Chain(**options).make(only)


if __name__ == "__main__":
    main()
