"""The best of m candidates: the same codes for m = 1, the scorer's choice for more, and what records say."""

import json
import shutil

import numpy as np
import pytest
import torch

from mvar_models import MVARPipeline
from mvar_models.evaluation.npz import write_npz
from mvar_models.evaluation.sweep import sweep
from mvar_models.networks.scorer import Scorer, ScorerConfig, load_scorer
from mvar_models.pipeline.base import pipeline_of
from mvar_models.pipeline.identity import determinants
from mvar_models.sampling import lsrs, settings
from mvar_models.sampling.settings import SamplingSettings

from command_cases import mvar
from tiny_models import tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae


class Brightest:
    """Scores a map by its sum, so that the best candidate is known; stands in for every scorer by name."""

    def check_fits(self, config):
        pass

    def __call__(self, maps, labels, scale):
        self.seen = (maps, labels, scale)
        return maps.sum((1, 2, 3))


@pytest.fixture
def brightest(monkeypatch):
    scorer = Brightest()
    for module in (lsrs, settings):
        monkeypatch.setattr(module, "load_scorer", lambda *place: scorer)
    return scorer


def pipeline(make):
    return pipeline_of(make(), tiny_vqvae())


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar, tiny_markov_var])
def test_one_candidate_is_ancestral_sampling(make, brightest):
    pipe, options = pipeline(make), dict(seed=0, output_type="latent", guidance_scale=1.5)
    plain = pipe([0, 1, 2], **options)
    one = pipe([0, 1, 2], **options, scorer="any", candidates=1)
    none = pipe([0, 1, 2], **options, scorer="any", candidate_scales="3:")
    assert torch.equal(plain.indices, one.indices) and torch.equal(plain.indices, none.indices)
    # The default leaves the coarsest scale alone.
    four = pipe([0, 1, 2], **options, scorer="any")
    assert torch.equal(plain.indices[:, 0], four.indices[:, 0])
    assert not torch.equal(plain.indices, four.indices)


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_the_best_candidate_is_kept_and_images_do_not_depend_on_their_batch(make, brightest):
    pipe = pipeline(make)
    options = dict(
        output_type="latent", guidance_scale=0.0, top_k=0, top_p=0.0, scorer="any", candidate_scales="2:"
    )
    sums = {}
    for count in (1, 4, 32):
        output = pipe([0, 1, 2], seed=3, **options, candidates=count)
        sums[count] = output.images.sum((1, 2, 3))
        alone = pipe([2], seed=5, **options, candidates=count)
        assert torch.equal(alone.indices[0], output.indices[2])
    # Scales before the last are the same for all, and the first candidate is always among them.
    assert (sums[32] >= sums[1]).all() and sums[32].mean() > sums[4].mean() > sums[1].mean()


def test_the_scorer_sees_the_map_with_the_candidate_the_class_and_the_scale(brightest):
    output = pipeline(tiny_mvar)(
        [2], seed=0, output_type="latent", scorer="any", candidates=3, candidate_scales="2:3"
    )
    maps, labels, scale = brightest.seen
    assert maps.shape == (3, 4, 4, 4) and labels.tolist() == [2, 2, 2] and scale == 2
    best = maps[maps.sum((1, 2, 3)).argmax()]
    torch.testing.assert_close(best, output.images[0])


@pytest.mark.parametrize(
    "text, scales", [("1:", range(1, 6)), (":2", range(2)), ("-2:", range(4, 6)), ("3:99", range(3, 6))]
)
def test_scales_are_a_slice(text, scales):
    assert lsrs.chosen_scales(text, 6) == scales


@pytest.fixture(scope="module")
def digits():
    return MVARPipeline.from_pretrained("mvar-digits")


def saved_scorer(folder, pipe, seed=0, **changes):
    config = pipe.model.config
    shape = dict(num_classes=config.num_classes, z_channels=config.z_channels, sides=config.sides, width=8)
    torch.manual_seed(seed)
    Scorer(ScorerConfig(**{**shape, **changes})).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path, digits):
    """The folder of a run, of which only the best scorer exists."""
    saved_scorer(tmp_path / "run" / "best", digits)
    yield str(tmp_path / "run")
    load_scorer.cache_clear()


def test_commands_take_a_run_and_records_draw_the_same_images_again(tmp_path, digits, run):
    options = f"--model mvar-digits --labels 3,7 --n 1 --scorer {run} --candidates 3 --candidate-scales 2:"
    result = mvar(f"sample {options} -o", tmp_path / "first")
    assert result.exit_code == 0, result.output
    output = digits([3, 7], seed=0, output_type="np", scorer=run, candidates=3, candidate_scales="2:")
    assert not np.array_equal(output.images, digits([3, 7], seed=0, output_type="np").images)
    record = tmp_path / "first" / "samples.json"
    noted = json.loads(record.read_text())
    assert noted["settings"]["candidates"] == 3 and noted["settings"]["candidate_scales"] == "2:"
    result = mvar("sample --again", record, "-o", tmp_path / "again")
    assert result.exit_code == 0, result.output
    first, again = (sorted((tmp_path / each).glob("0*.png")) for each in ("first", "again"))
    assert len(first) == 2 and [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    saved_scorer(f"{run}/best", digits, seed=1)
    load_scorer.cache_clear()
    result = mvar("sample --again", record, "-o", tmp_path / "changed")
    assert result.exit_code == 1 and f"{run} holds other weights now" in result.output
    gallery = mvar(f"gallery {options} -o", tmp_path / "gallery")
    assert gallery.exit_code == 0, gallery.output


def test_files_of_images_are_not_continued_with_another_scorer(tmp_path, digits, run):
    """The scorer counts by its content, wherever it lies."""
    chosen = SamplingSettings.of(digits.model.config, scorer=run, candidates=2, candidate_scales="5:")
    assert write_npz(digits, tmp_path / "images.npz", per_class=1, settings=chosen)
    saved_scorer(f"{run}/best", digits, seed=1)
    load_scorer.cache_clear()
    with pytest.raises(FileExistsError, match="scorer_weights"):
        write_npz(digits, tmp_path / "images.npz", per_class=1, settings=chosen)
    shutil.copytree(run, f"{run}-copy")
    ours, copied = (determinants(digits, SamplingSettings.of(digits.model.config, scorer=place))
                    for place in (run, f"{run}-copy"))  # fmt: skip
    assert ours["scorer_weights"] == copied["scorer_weights"] != None  # noqa: E711


def test_a_sweep_keeps_its_figures_by_the_content_of_the_scorer(tmp_path, digits, run):
    chosen = SamplingSettings.of(digits.model.config, scorer=run, candidates=2, candidate_scales="5:")
    judged = []

    def judge(file):
        judged.append(file)
        return {"fd": float(len(judged))}

    def figures():
        cells = sweep(digits, judge, [chosen], tmp_path / "sweep", settings={}, per_class=1)
        return [cell.figure("fd") for cell in cells]

    assert figures() == figures() == [1.0]
    saved_scorer(f"{run}/best", digits, seed=1)
    load_scorer.cache_clear()
    assert figures() == [2.0]


def test_a_preset_with_a_scorer_is_kept_and_gives_the_same_images(tmp_path, digits, run):
    SamplingSettings.of(digits.model.config, scorer=run, candidates=2).write(tmp_path / "preset.json")
    pipe = MVARPipeline.from_pretrained("mvar-digits", preset=tmp_path / "preset.json")
    again = MVARPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "saved"))
    expected = digits([3, 7], scorer=run, candidates=2).indices
    assert torch.equal(pipe([3, 7]).indices, expected) and torch.equal(again([3, 7]).indices, expected)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"sides": (1, 2, 4, 8)}, r"scorer was trained for sides \(1, 2, 4, 8\), the model has \(1, 2, 3,"),
        ({"num_classes": 3}, "scorer was trained for num_classes 3, the model has 10"),
        ({"z_channels": 4}, "scorer was trained for z_channels 4, the model has 16"),
    ],
)
def test_a_scorer_of_another_model_is_refused_in_one_line(tmp_path, digits, changes, match):
    other = saved_scorer(tmp_path / "other", digits, **changes)
    with pytest.raises(ValueError, match=match):
        digits([3], scorer=other)
    result = mvar(f"sample --model mvar-digits --labels 3 --n 1 --scorer {other} -o", tmp_path / "out")
    assert result.exit_code == 1 and result.output.startswith("Error: scorer was trained for")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"candidates": 0}, "candidates must be a whole number from 1"),
        ({"candidate_scales": "all"}, "candidate_scales must be text that slices the scales.*'all'"),
        ({"sampler": "smooth", "scorer": "x"}, "scorer and the sampler 'scored' go together.*'smooth'"),
        ({"sampler": "scored"}, "scorer and the sampler 'scored' go together, got None"),
    ],
)
def test_wrong_settings_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        SamplingSettings(1.0, 0, 0.0, **options)


def test_a_scorer_that_is_none_is_refused_by_name(digits):
    with pytest.raises(FileNotFoundError, match="no-such-run"):
        digits([3], scorer="./no-such-run")
    with pytest.raises(ValueError, match="mvar"):
        digits([3], scorer="mvar-digits")
