"""Results are kept under what determines them, and none is reused under another."""

import json

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from mvar_models import MVARPipeline
from mvar_models.cli.samples_folder import (
    RECORD,
    Samples,
    check_again,
    images_of,
    read_samples,
    write_samples,
)
from mvar_models.distributed import Processes
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.npz import write_npz
from mvar_models.evaluation.reconstruction import decoded_images, reconstructed_images, sampled_images
from mvar_models.evaluation.sweep import sweep
from mvar_models.pipeline import identity
from mvar_models.pipeline.identity import determinants, network_identity
from mvar_models.sampling.settings import SamplingSettings
from mvar_models.tokens.token_set import TokenSet

from command_cases import mvar
from feature_cases import random_images
from tiny_models import tiny_mvar, tiny_vqvae

PLAIN = SamplingSettings(1.0, 0, 0.0)


def tiny_pipeline():
    return MVARPipeline(tiny_mvar(), tiny_vqvae())


def other_version(pipeline, monkeypatch):
    monkeypatch.setattr(identity, "__version__", "0.0.9")


def other_model(pipeline, monkeypatch):
    with torch.no_grad():
        pipeline.model.head.bias[3] += 1e-3


def other_vqvae(pipeline, monkeypatch):
    with torch.no_grad():
        next(pipeline.vqvae.parameters()).view(-1)[0] += 1e-3


def other_type(pipeline, monkeypatch):
    pipeline.model.bfloat16()


def other_layer(pipeline, monkeypatch):
    class Other(torch.nn.Linear):
        pass

    pipeline.model.head.__class__ = Other


def other_hook(pipeline, monkeypatch):
    pipeline.model.head.register_forward_hook(lambda module, inputs, output: -output)


def other_preset(pipeline, monkeypatch):
    pipeline.model.config = pipeline.model.config.replace(guidance_scale=9.0)


def finished_npz(pipeline, folder):
    write_npz(pipeline, folder / "a.npz", per_class=1)


def npz_parts(pipeline, folder):
    write_npz(pipeline, folder / "a.npz", per_class=1, batch_size=1, processes=Processes(0, 2))


def swept(pipeline, folder):
    sweep(pipeline, lambda file: {"fd": 1.0}, [PLAIN], folder, settings={}, per_class=1)


def drawn_again(pipeline, folder):
    if not (folder / RECORD).exists():
        samples = Samples("model", None, None, "float32", PLAIN, images_of([1], 0, None))
        write_samples(pipeline, samples, folder, columns=1)
    check_again(read_samples(folder / RECORD), pipeline, folder / RECORD)


@pytest.mark.parametrize("reuse", [finished_npz, npz_parts, swept, drawn_again])
@pytest.mark.parametrize("change", [other_model, other_vqvae, other_type, other_layer, other_hook])
def test_what_other_weights_drew_is_refused(tmp_path, monkeypatch, reuse, change):
    pipeline = tiny_pipeline()
    for _ in range(2):
        reuse(pipeline, tmp_path)
    change(pipeline, monkeypatch)
    with pytest.raises((ValueError, FileExistsError), match=r"model_weights differ|holds other weights now"):
        reuse(pipeline, tmp_path)


@pytest.mark.parametrize("reuse", [finished_npz, npz_parts, swept])
def test_what_another_version_drew_is_refused(tmp_path, monkeypatch, reuse):
    pipeline = tiny_pipeline()
    reuse(pipeline, tmp_path)
    other_version(pipeline, monkeypatch)
    with pytest.raises((ValueError, FileExistsError), match=r"\(mvar differ\)"):
        reuse(pipeline, tmp_path)


@pytest.mark.parametrize("reuse", [finished_npz, npz_parts])
def test_another_preset_of_the_checkpoint_is_refused(tmp_path, monkeypatch, reuse):
    pipeline = tiny_pipeline()
    reuse(pipeline, tmp_path)
    other_preset(pipeline, monkeypatch)
    with pytest.raises((ValueError, FileExistsError), match=r"\(guidance_scale differ\)"):
        reuse(pipeline, tmp_path)


def test_a_record_of_another_version_is_drawn_with_a_warning(tmp_path, monkeypatch, caplog):
    pipeline = tiny_pipeline()
    drawn_again(pipeline, tmp_path)
    assert not caplog.records
    other_version(pipeline, monkeypatch)
    drawn_again(pipeline, tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    del record["model_weights"]
    (tmp_path / RECORD).write_text(json.dumps(record))
    drawn_again(pipeline, tmp_path)
    assert [each.getMessage().partition(RECORD)[2] for each in caplog.records] == [
        f" is of mvar {record['versions']['mvar']}, this is 0.0.9: the images may differ",
        " does not say which weights drew its images; they may differ",
    ]


@pytest.mark.parametrize("change", [other_model, other_vqvae, other_type, other_preset, other_version])
def test_digests_of_drawn_images_follow_what_draws(monkeypatch, change):
    pipeline = tiny_pipeline()
    before = sampled_images(pipeline, [1], seed=0).digest
    assert before == sampled_images(tiny_pipeline(), [1], seed=0).digest
    change(pipeline, monkeypatch)
    assert sampled_images(pipeline, [1], seed=0).digest != before


def test_digests_of_reconstructions_follow_the_vqvae(monkeypatch):
    pipeline, originals = tiny_pipeline(), ArrayImages(random_images(2, side=16))
    tokens = TokenSet(torch.zeros(1, 3, 21, dtype=torch.int16).numpy().astype("u2"), torch.arange(3).numpy())

    def digests():
        return (
            reconstructed_images(originals, pipeline.vqvae, "back").digest,
            decoded_images(pipeline.vqvae, tokens, tokens.labels).digest,
        )

    before = digests()
    assert before[0] != originals.digest
    other_vqvae(pipeline, monkeypatch)
    assert all(new != old for new, old in zip(digests(), before))


def test_names_and_the_preset_are_no_weights():
    model = tiny_mvar()
    before = network_identity(model)
    model.config = model.config.replace(class_names=("a", "b", "c"), vqvae="elsewhere", top_k=7)
    assert network_identity(model) == before
    model.config = model.config.replace(kernel_size=5)
    assert network_identity(model) != before


def test_options_come_before_the_preset():
    pipeline = tiny_pipeline()
    given = determinants(pipeline, SamplingSettings.of(pipeline.model.config, top_k=3, sampler="smooth"))
    assert (given["top_k"], given["sampler"], given["top_p"]) == (3, "smooth", pipeline.model.config.top_p)


def test_what_a_layer_packs_counts():
    """Quantised layers keep their weights in tuples, quantised tensors in other tensors."""

    class Packed(torch.nn.Linear):
        def get_extra_state(self):
            return (self.packed, torch.qint8)

    network = tiny_mvar()
    network.head = Packed(32, 24)
    found = []
    for value in (0, 0, 1):
        network.head.packed = torch.tensor([value])
        found.append(network_identity(network))
    assert found[0] == found[1] != found[2]
    network, found = tiny_mvar(), []
    bias = network.head.bias.detach()
    for other in (bias, bias.clone(), bias + 1):
        network.head.bias = torch.nn.Parameter(TwoTensor(bias, other))
        found.append(network_identity(network))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("scales", [(1.0, 2.0), ({"default": 1.0}, {"default": 2.0})])
def test_the_scale_of_an_adapter_counts(scales):
    """It is a plain attribute of a layer of another package, or a dict of them."""

    class Adapter(torch.nn.Linear):
        pass

    network = tiny_mvar()
    network.head.__class__ = Adapter
    found = []
    for scale in (scales[0], scales[0], scales[1]):
        network.head.scaling = scale
        found.append(network_identity(network))
    assert found[0] == found[1] != found[2]


def test_a_model_that_was_trained_on_is_not_scored_by_its_old_images(tmp_path):
    """The whole way: draw and score, replace the weights under the same name, do the same again."""
    model, out = tmp_path / "best", tmp_path / "ev"
    pipeline = MVARPipeline.from_pretrained("mvar-digits")
    pipeline.save_pretrained(model)
    command = "--per-class 1 --reference digits@held-out --features pixels --metrics fd --out"
    first = mvar("evaluate --model", model, *command.split(), out)
    assert first.exit_code == 0, first.output
    assert mvar("evaluate --model", model, *command.split(), out).stdout == first.stdout
    with torch.no_grad():
        pipeline.model.class_embedding.weight.copy_(pipeline.model.class_embedding.weight.roll(1, 0))
    pipeline.save_pretrained(model)
    result = mvar("evaluate --model", model, *command.split(), out)
    assert result.exit_code == 1
    assert "best.npz exists already" in result.output and "model_weights differ" in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("Error: ")]) == 1
