"""Models and weights of prefix guidance, each with guidance tuned: `python -m scripts.guidance_grid ...`.

An arm is a model with one weight of prefix guidance. Its guidance scale is the one whose images of seed 0
have the smallest Frechet distance; its figures are of that scale and the seeds 1, 2, ... Digits are judged as
`mvar demo` judges them, other data as `compare_models` does. The folder gets the figures of each set, so that
a stopped run continues, and grid.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mvar_models.data.class_names import same_classes
from mvar_models.data.open import DIGITS, open_images
from mvar_models.demo.quality import DigitJudge, features
from mvar_models.evaluation.features.network import feature_network
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.files import claim, file_names, write_text
from mvar_models.images import to_uint8
from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.pipeline.identity import determinants
from mvar_models.records import read_record
from mvar_models.sampling.prefix_guidance import CORRUPTIONS, PrefixGuidance
from scripts.compare_models import Judge

# Image i of a set takes seed k * _STRIDE + i; sets of other data than digits, one of so many draws of images.
_STRIDE, _DRAWS, _BATCH = 100_000, 4, 50

# Images (n, R, R, 3) and a seed to figures, the Frechet distance first.
Figures = Callable[[np.ndarray, int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model with one weight of prefix guidance, and the folder with the figures of its sets."""

    folder: Path
    pipeline: Pipeline
    prefix: PrefixGuidance

    def figures(
        self, judge: Figures, labels: np.ndarray, guidance_scale: float, seed: int
    ) -> dict[str, float]:
        """Sample and judge one set, or read its figures."""
        file = self.folder / f"guidance{guidance_scale:g}-seed{seed}.json"
        if not file.exists():
            seeds = [seed * _STRIDE + i for i in range(len(labels))]
            images = self.pipeline(
                labels.tolist(), seed=seeds, guidance_scale=guidance_scale, processors=[self.prefix],
                output_type="np", batch_size=_BATCH, batch_invariant=False,
            ).images  # fmt: skip
            write_text(file, json.dumps(judge(np.asarray(images), seed), indent=1) + "\n")
        return read_record(file, dict[str, float])


def judge_of(data: str, side: int, network: str) -> tuple[Figures, np.ndarray, Sequence[str]]:
    """Return what judges sets of images, the classes of a set's images, and the names of the classes."""
    source = open_images(data, side)
    held_out = source.labels[source.held_out]
    if data == DIGITS:
        train, real = (features(to_uint8(source.images(part))) for part in (source.train, source.held_out))
        judge = DigitJudge(train, source.labels[source.train], real, held_out)

        def figures(images: np.ndarray, seed: int) -> dict[str, float]:
            found = dataclasses.asdict(judge.judge(features(images), held_out))
            return {name: found[name] for name in ("frechet", "agreement", "near_copies")}

    else:
        sets = Judge(source, feature_network(network), _DRAWS, side)

        def figures(images: np.ndarray, seed: int) -> dict[str, float]:
            return sets.figures(sets.summary(ArrayImages(images, held_out, "drawn")), seed % _DRAWS)

    return figures, held_out, source.class_names


def table(
    arms: Sequence[Arm], judge: Figures, labels: np.ndarray, scales: Sequence[float], seeds: int
) -> Iterator[str]:
    """Yield the lines of the table in Markdown, as its arms are judged."""
    yield f"{len(labels)} images a set; the last columns are means of {seeds} seeds +- deviation."
    for arm in tqdm(arms, "arms", leave=False):
        tuning = {scale: arm.figures(judge, labels, scale, 0) for scale in scales}
        distance, *_ = names = list(tuning[scales[0]])
        best = min(scales, key=lambda scale: tuning[scale][distance])
        rows = [arm.figures(judge, labels, best, seed) for seed in range(1, seeds + 1)]
        if arm is arms[0]:
            titles = [f"guidance {scale:g}" for scale in scales] + ["best", *names]
            yield f"\n| arm | {' | '.join(title.replace('_', ' ') for title in titles)} |"
            yield "|---" * (len(titles) + 1) + "|"
        cells = [f"{tuning[scale][distance]:.1f}" for scale in scales] + [f"{best:g}"]
        for name in names:
            values, digits = [row[name] for row in rows], 1 if name == distance else 3
            cells.append(f"{statistics.mean(values):.{digits}f} +- {statistics.stdev(values):.{digits}f}")
        yield f"| {arm.folder.name} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=DIGITS, help="images with classes, as for mvar train")
    parser.add_argument("--model", required=True, action="append", help="samples; may be repeated")
    parser.add_argument("--guidance-scale", default="0,0.5,1,1.5,2,3", help="values, with commas between")
    parser.add_argument("--prefix", default="0", help="weights of prefix guidance, with commas between")
    parser.add_argument("--corruption", default=CORRUPTIONS[0], choices=CORRUPTIONS)
    parser.add_argument(
        "--seeds", type=int, default=3, help="2 or more, after seed 0, which tunes (default: 3)"
    )
    parser.add_argument("--features", default="efficientnet-lite0", help="of other data than digits")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    pipelines = [pipeline_for(model) for model in options.model]
    side = pipelines[0].vqvae.config.resolution
    judge, labels, names = judge_of(options.data, side, options.features)
    arms = []
    for name, pipeline in zip(file_names(options.model), pipelines):
        if not same_classes(names, pipeline.model.config.class_names or names):
            raise SystemExit(f"{name} does not number the classes of --data alike")
        for weight in map(float, options.prefix.split(",")):
            folder = options.out / (f"{name}-{options.corruption}-{weight:g}" if weight else name)
            claim(
                folder / "settings.json",
                {"data": options.data, "features": options.features, **determinants(pipeline)},
                "sets",
            )
            arms.append(
                Arm(folder, pipeline, PrefixGuidance(pipeline.model, weight, corruption=options.corruption))
            )
    scales = [float(scale) for scale in options.guidance_scale.split(",")]
    text = "\n".join([*table(arms, judge, labels, scales, options.seeds), ""])
    write_text(options.out / "grid.md", text)
    print(text)


if __name__ == "__main__":
    main()
