"""Compare ways of sampling, each with its guidance tuned: `python -m scripts.guidance_grid ...`.

An arm is a model, alone or with a weight of prefix guidance, a refiner or a scorer. Its guidance scale and
top_p are those whose images of seed 0 have the smallest Frechet distance; its figures are of the seeds 1, 2,
... Digits are judged as `mvar demo` judges them, other data as `compare_models` does. The folder gets the
figures of each set, so that a stopped run continues, and grid.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
from mvar_models.pipeline.identity import determinants, drawing_weights
from mvar_models.records import read_record
from mvar_models.sampling.prefix_guidance import CORRUPTIONS, PrefixGuidance
from mvar_models.sampling.settings import SamplingSettings
from scripts.compare_models import Judge

# Image i of a set takes seed k * _STRIDE + i; sets of other data than digits, one of so many draws of images.
_STRIDE, _DRAWS, _BATCH = 100_000, 4, 50

# Images (n, R, R, 3) and a seed to figures, the Frechet distance first.
Figures = Callable[[np.ndarray, int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of sampling, and the folder with the figures of its sets.

    Attributes:
        folder: As above.
        pipeline: Samples the images.
        options: What the call takes besides guidance_scale and top_p, which a refiner takes too.
    """

    folder: Path
    pipeline: Pipeline
    options: dict[str, Any]

    def figures(
        self, judge: Figures, labels: np.ndarray, values: dict[str, float], seed: int
    ) -> dict[str, float]:
        """Sample and judge one set, or read its figures."""
        names = "-".join(f"{name.removesuffix('_scale')}{value:g}" for name, value in values.items())
        file = self.folder / f"{names}-seed{seed}.json"
        if not file.exists():
            if refiner := self.options.get("refiner"):
                refiner.model.config = refiner.model.config.replace(**values)
            seeds = [seed * _STRIDE + i for i in range(len(labels))]
            images = self.pipeline(
                labels.tolist(), seed=seeds, output_type="np", batch_size=_BATCH, batch_invariant=False,
                **values, **self.options,
            ).images  # fmt: skip
            write_text(file, json.dumps(judge(np.asarray(images), seed), indent=1) + "\n")
        return read_record(file, dict[str, float])


def judge_of(
    data: str, side: int, network: str, count: int | None = None, halves: bool = False
) -> tuple[Figures, np.ndarray, Sequence[str]]:
    """Return what judges sets of images, the classes of a set's images, and the names of the classes.

    Args:
        data: The real images, as for mvar train.
        side: Side of the images in pixels.
        network: Feature network, of other data than digits.
        count: Images of a set, with the classes of random held-out images; default: of all of them.
        halves: Of digits: measure the distance to held-out ones, of seed 0 to every other one, of other seeds
            to the rest.
    """
    source = open_images(data, side)
    labels = source.labels[source.held_out]
    if count is not None:
        labels = np.sort(np.random.default_rng(0).choice(labels, count, replace=False))
    if data == DIGITS:
        train, real = (features(to_uint8(source.images(part))) for part in (source.train, source.held_out))
        judge = DigitJudge(train, source.labels[source.train], real, source.labels[source.held_out])

        def figures(images: np.ndarray, seed: int) -> dict[str, float]:
            reference = real[min(seed, 1) :: 2] if halves else train
            found = dataclasses.asdict(judge.judge(features(images), labels, reference))
            return {name: found[name] for name in ("frechet", "agreement", "near_copies")}

    else:
        sets = Judge(source, feature_network(network), _DRAWS, side)

        def figures(images: np.ndarray, seed: int) -> dict[str, float]:
            return sets.figures(sets.summary(ArrayImages(images, labels, "drawn")), seed % _DRAWS)

    return figures, labels, source.class_names


def variants(options: argparse.Namespace, pipeline: Pipeline) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the end of an arm's name, and its options of the call, for each arm of a model."""
    yield "", {}
    for weight in filter(None, map(float, options.prefix.split(","))):
        prefix = PrefixGuidance(pipeline.model, weight, corruption=options.corruption)
        yield f"-{options.corruption}-{weight:g}", {"processors": [prefix]}
    if options.refiner:
        refiner, [name] = pipeline_for(options.refiner), file_names([options.refiner])
        for first in map(int, options.refine_from.split(",")):
            yield f"-{name}-{first}", {"refiner": refiner, "refine_from": first}
    for scorer, name in zip(options.scorer, file_names(options.scorer)):
        chosen = {"candidates": options.candidates, "candidate_scales": options.candidate_scales}
        slug = f"{options.candidates}-from-{options.candidate_scales.strip(':')}"
        yield f"-{name}-{slug}", {"scorer": scorer, **chosen}


def table(
    arms: Sequence[Arm], judge: Figures, labels: np.ndarray, grid: Sequence[dict[str, float]], seeds: int
) -> Iterator[str]:
    """Yield the lines of the table in Markdown, as its arms are judged."""
    yield f"{len(labels)} images a set; the last columns are means of {seeds} seeds +- deviation."
    points = [" ".join(f"{n.removesuffix('_scale')} {value:g}" for n, value in p.items()) for p in grid]
    for arm in tqdm(arms, "arms", leave=False):
        tuning = [arm.figures(judge, labels, values, 0) for values in grid]
        distance, *_ = names = list(tuning[0])
        best = min(range(len(grid)), key=lambda point: tuning[point][distance])
        rows = [arm.figures(judge, labels, grid[best], seed) for seed in range(1, seeds + 1)]
        if arm is arms[0]:
            titles = [*points, "best", *names]
            yield f"\n| arm | {' | '.join(title.replace('_', ' ') for title in titles)} |"
            yield "|---" * (len(titles) + 1) + "|"
        cells = [f"{found[distance]:.1f}" for found in tuning]
        cells += [" ".join(f"{value:g}" for value in grid[best].values())]
        for name in names:
            values, digits = [row[name] for row in rows], 1 if name == distance else 3
            cells.append(f"{statistics.mean(values):.{digits}f} +- {statistics.stdev(values):.{digits}f}")
        yield f"| {arm.folder.name} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=DIGITS, help="images with classes, as for mvar train")
    parser.add_argument("--model", required=True, action="append", help="samples; may be repeated")
    parser.add_argument("--guidance-scale", default="0,0.5,1,1.5,2,3", help="values, with commas between")
    parser.add_argument("--top-p", help="values, with commas between (default: the checkpoint's)")
    parser.add_argument("--prefix", default="0", help="weights of prefix guidance, with commas between")
    parser.add_argument("--corruption", default=CORRUPTIONS[0], choices=CORRUPTIONS)
    parser.add_argument("--refiner", help="another model of the same VQVAE, which samples the fine scales")
    parser.add_argument("--refine-from", default="1", help="its first scales, with commas between")
    parser.add_argument("--scorer", default=[], action="append", help="of LSRS; may be repeated")
    parser.add_argument("--candidates", type=int, default=4, help="with --scorer (default: 4)")
    parser.add_argument("--candidate-scales", default="1:", help="with --scorer (default: 1:)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="2 or more, after seed 0, which tunes (default: 3)"
    )
    parser.add_argument("--images", type=int, help="of a set (default: as many as --data holds out)")
    parser.add_argument("--halves", action="store_true", help="digits: tune and judge on held-out halves")
    parser.add_argument("--features", default="efficientnet-lite0", help="of other data than digits")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.halves and options.data != DIGITS:
        raise SystemExit("--halves is for --data digits")
    pipelines = [pipeline_for(model) for model in options.model]
    side = pipelines[0].vqvae.config.resolution
    judge, labels, names = judge_of(options.data, side, options.features, options.images, options.halves)
    judged_by = {"data": options.data, "features": options.features, "images": len(labels)}
    arms = []
    for name, pipeline in zip(file_names(options.model), pipelines):
        if not same_classes(names, pipeline.model.config.class_names or names):
            raise SystemExit(f"{name} does not number the classes of --data alike")
        for suffix, of_call in variants(options, pipeline):
            chosen = {
                key: value for key, value in of_call.items() if key in SamplingSettings.__dataclass_fields__
            }
            settings = determinants(pipeline, SamplingSettings.of(pipeline.model.config, **chosen))
            refiner = drawing_weights(of_call["refiner"]) if "refiner" in of_call else None
            folder = options.out / f"{name}{suffix}"
            claim(
                folder / "settings.json",
                {**judged_by, "halves": options.halves, "refiner": refiner, **settings}, "sets",
            )  # fmt: skip
            arms.append(Arm(folder, pipeline, of_call))
    grid = [{"guidance_scale": float(scale)} for scale in options.guidance_scale.split(",")]
    if options.top_p:
        grid = [{**point, "top_p": float(top_p)} for point in grid for top_p in options.top_p.split(",")]
    text = "\n".join([*table(arms, judge, labels, grid, options.seeds), ""])
    write_text(options.out / "grid.md", text)
    print(text)


if __name__ == "__main__":
    main()
