"""Models beside real images, over seeds: `python scripts/compare_models.py --data D --model M --out O`.

Every set has as many images as --data holds out, with their classes, and is compared with as many training
images: a Frechet distance depends on both numbers, and on how often each class comes. Row k of a set draws
with seed k and takes the k-th draw of training images. Copies and the nearest image's class are looked for in
all training images.

The folder gets scores.md and scores.json; MODEL/neighbours.png, the drawn images closest to training images
above those, then a spread of all; and blind.png, drawn images of the last model shuffled with held-out ones,
to be named by someone who has not seen blind.json. Drawn images are kept, and not drawn again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from mvar_models.data.class_names import renumbered
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource
from mvar_models.evaluation.comparison import Comparison, metric
from mvar_models.evaluation.features.network import FeatureNetwork, feature_network
from mvar_models.evaluation.image_sets import ArrayImages, ImageSet, SourceImages, batches
from mvar_models.evaluation.nearest import Nearest, NearestTraining
from mvar_models.evaluation.reconstruction import reconstructed_images, sampled_images
from mvar_models.evaluation.report import write_images
from mvar_models.evaluation.scores import Moments
from mvar_models.evaluation.summary import Summary, summarize
from mvar_models.files import claim, file_names, replacing, write_text
from mvar_models.images import grid
from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.pipeline.identity import determinants
from mvar_models.sampling.progress import showing

# Against as many training images, and against all of them.
EQUAL = ("fd", "precision", "recall", "coverage", "class_diversity")
ALL = ("label_agreement", "near_copies")
# Image i of a set takes seed k * _STRIDE + i.
_STRIDE = 100_000
_BATCH = 32
_BLIND_COLUMNS = 10
_CAPTION = 12


class Judge:
    """Compares sets with the training images of a dataset.

    Args:
        source: The dataset.
        network: Computes the features.
        draws: How many draws of training images.
        resolution: Side of the images.
    """

    def __init__(self, source: ImageSource, network: FeatureNetwork, draws: int, resolution: int) -> None:
        self.network = network
        if len(source.class_names) < 2 or not len(source.split.reserved):
            raise SystemExit("--data needs two classes or more, and images that are held out of training")
        self.held_out = SourceImages(source, source.split.reserved, "real", resolution)
        self.training = SourceImages(source, source.train, "training", resolution)
        self._all = self.summary(self.training)
        self.real = self.summary(self.held_out)
        count = min(len(self.held_out), len(self.training))
        rng = np.random.default_rng(0)
        self._equal = [
            _part(self._all, rng.choice(len(self.training), count, replace=False)) for _ in range(draws)
        ]
        self._near_real = self._nearest(self.real).distances

    def summary(self, images: ImageSet) -> Summary:
        """Compute the features of a set."""
        with showing():
            found = summarize(images, self.network, batch_size=_BATCH)
        assert found is not None
        return found

    def figures(self, drawn: Summary, draw: int) -> dict[str, float]:
        """Compare a set with one draw of as many training images, and with all."""
        equal = Comparison(drawn, self._equal[draw])
        found: dict[str, float] = {}
        for names, comparison in ((EQUAL, equal), (ALL, self.against_all(drawn))):
            for name in names:
                found |= metric(name)(comparison)
        return {name: found[name] for name in (*EQUAL, *ALL)}

    def against_all(self, drawn: Summary) -> Comparison:
        """Return the comparison with all training images; real ones are those held out."""
        nearest = self._nearest(drawn)
        training = NearestTraining(
            "training", len(self.training), nearest.distances, nearest.indices.numpy(),
            self._near_real, "held out",
        )  # fmt: skip
        return Comparison(drawn, self._all, training=training)

    def _nearest(self, summary: Summary) -> Nearest:
        assert summary.features is not None and self._all.features is not None
        nearest = Nearest(summary.features)
        nearest.update(self._all.features, self._all.indices)
        return nearest


def _part(summary: Summary, chosen: np.ndarray) -> Summary:
    assert summary.features is not None and summary.labels is not None
    features = summary.features[torch.from_numpy(chosen)]
    return dataclasses.replace(
        summary,
        count=len(chosen),
        moments=Moments.of(features),
        features=features,
        indices=summary.indices[chosen],
        labels=summary.labels[chosen],
    )


def drawn_set(
    pipeline: Pipeline,
    labels: np.ndarray,
    class_names: Sequence[str],
    seed: int,
    name: str,
    out: Path,
) -> ArrayImages:
    """Draw a set, or read it where it has been drawn."""
    file = out / name / f"drawn-{seed}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        ours = renumbered(labels, class_names, pipeline.model.config.class_names)
        if ours.min() < 0:
            raise SystemExit(f"{name} does not have all the classes of --data")
        images = sampled_images(pipeline, ours, seed=seed * _STRIDE)
        starts = -(-len(labels) // _BATCH)
        parts = [
            each for _, each in tqdm(batches(images, _BATCH), f"{name}, seed {seed}", starts, leave=False)
        ]
        with replacing(file) as temporary:
            np.savez(temporary, images=np.concatenate(parts))
    with np.load(file, allow_pickle=False) as stored:
        return ArrayImages(stored["images"], labels, name)


def compare(judge: Judge, pipelines: dict[str, Pipeline], seeds: int, out: Path) -> list[dict[str, Any]]:
    """Return the rows of all sets: name, seed and figures."""
    labels, names = judge.held_out.labels, judge.held_out.class_names
    assert labels is not None
    vqvae = next(iter(pipelines.values())).vqvae
    through = judge.summary(reconstructed_images(judge.held_out, vqvae, "reconstructed"))
    rows = []
    for name, summary in (("real", judge.real), ("reconstructed", through)):
        rows += [{"set": name, "seed": seed, **judge.figures(summary, seed)} for seed in range(seeds)]
    for name, pipeline in pipelines.items():
        for seed in range(seeds):
            summary = judge.summary(drawn_set(pipeline, labels, names, seed, name, out))
            if seed == 0:
                comparison = judge.against_all(summary)
                write_images(comparison, {}, judge.training, out / name)
            rows.append({"set": name, "seed": seed, **judge.figures(summary, seed)})
    return rows


def table(rows: Sequence[dict[str, Any]], count: int) -> Iterator[str]:
    """Yield the lines of a table in Markdown: means over seeds and their deviations."""
    figures = [*EQUAL, *ALL]
    yield f"{count} images a set, means over {len({row['seed'] for row in rows})} seeds +- deviation."
    yield ""
    yield f"| set | {' | '.join(name.replace('_', ' ') for name in figures)} |"
    yield "|---" * (len(figures) + 1) + "|"
    for name in dict.fromkeys(row["set"] for row in rows):
        group = [row for row in rows if row["set"] == name]
        cells = [_spread([row[figure] for row in group], 1 if figure == "fd" else 3) for figure in figures]
        yield f"| {name} | {' | '.join(cells)} |"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} +- {statistics.stdev(values):.{digits}f}"


def blind(
    drawn: ImageSet, real: ImageSet, class_names: Sequence[str], counts: Sequence[int], out: Path
) -> None:
    """Write a numbered sheet of drawn and real images in random order, and what each of them is.

    Args:
        drawn, real: The sets.
        class_names: Names of their classes.
        counts: Drawn images, as many of each class as possible, and real ones.
        out: Folder for blind.png and blind.json.
    """
    rng = np.random.default_rng(0)
    assert drawn.labels is not None and real.labels is not None
    # The k-th images of all classes come before the next ones of any.
    order = rng.permutation(len(drawn))
    turns = [int((drawn.labels[order[:i]] == drawn.labels[index]).sum()) for i, index in enumerate(order)]
    chosen = order[np.argsort(turns, kind="stable")][: counts[0]]
    others = rng.choice(len(real), counts[1], replace=False)
    shown = [("drawn", drawn.labels[i], drawn.read(np.array([i]))[0][0]) for i in chosen]
    shown += [("real", real.labels[i], real.read(np.array([i]))[0][0]) for i in others]
    cells, key = [], []
    for number, index in enumerate(rng.permutation(len(shown))):
        kind, label, pixels = shown[index]
        cell = Image.new("RGB", (2 * pixels.shape[1], 2 * pixels.shape[0] + _CAPTION), "white")
        cell.paste(Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0])), (0, _CAPTION))
        ImageDraw.Draw(cell).text((2, 0), str(number), fill="black")
        cells.append(cell)
        key.append({"number": number, "kind": kind, "class": class_names[label]})
    with replacing(out / "blind.png") as temporary:
        grid(cells, _BLIND_COLUMNS).save(temporary, format="png")
    write_text(out / "blind.json", json.dumps(key, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="images with classes, as for mvar train")
    parser.add_argument("--model", required=True, action="append", help="draws; may be repeated")
    parser.add_argument("--vqvae", help="of the models (default: their own)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--blind", default="90,30", help="drawn and real images (default: 90,30)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    out: Path = options.out
    names = file_names(["real", "reconstructed", *options.model])[2:]
    pipelines = {name: pipeline_for(model, vqvae=options.vqvae) for name, model in zip(names, options.model)}
    # Kept images of other weights or settings have no place in one table.
    settings = {name: determinants(pipeline) for name, pipeline in pipelines.items()}
    last = list(pipelines)[-1]
    side = pipelines[last].vqvae.config.resolution
    source = open_images(options.data, side)
    data = {"data": options.data, "data_fingerprint": source.fingerprint}
    claim(out / "settings.json", {**data, **settings}, "images drawn")
    judge = Judge(source, feature_network(options.features), options.seeds, side)
    rows = compare(judge, pipelines, options.seeds, out)
    text = "\n".join([*table(rows, len(judge.held_out)), ""])
    write_text(out / "scores.json", json.dumps(rows, indent=1) + "\n")
    write_text(out / "scores.md", text)
    labels = judge.held_out.labels
    assert labels is not None
    drawn = drawn_set(pipelines[last], labels, source.class_names, 0, last, out)
    blind(drawn, judge.held_out, source.class_names, [int(n) for n in options.blind.split(",")], out)
    print(text)


if __name__ == "__main__":
    main()
