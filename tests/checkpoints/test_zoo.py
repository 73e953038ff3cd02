"""The models that have a name: entries, the embedded emoji models, and the names of ImageNet's classes."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mvar_models import VAR, VQVAE, MVARConfig, MVARPipeline, list_models
from mvar_models.checkpoints import zoo
from mvar_models.checkpoints.official import to_official
from mvar_models.evaluation.reconstruction import psnr
from mvar_models.images import to_tensor
from mvar_models.pipeline import pipeline_for

from golden_weights import Case, case_names

NAMES = [
    "vae-ch160v4096z32", "var-d16", "var-d20", "var-d24", "var-d30", "var-d36",
    "var-d16-neon", "var-d36-neon",
    "mvar-d16", "mvar-d16-finetuned", "mvar-d20-finetuned", "mvar-d24-finetuned",
    "markov-var-d16", "markov-var-d20", "markov-var-d24",
    "vae-digits", "var-digits", "mvar-digits", "vae-emoji", "var-emoji", "mvar-emoji",
]  # fmt: skip


def test_the_names():
    assert list_models() == NAMES
    assert list_models("*-digits") == NAMES[15:18]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_its_users_need(name):
    entry = zoo.find(name)
    assert entry.licence
    assert entry.parameters
    assert entry.resolution in (32, 64, 256, 512)
    assert entry.revision == "main"
    if entry.repository != "embedded" and entry.model_type != "vqvae":
        assert {"guidance_scale", "top_k", "top_p", "vqvae"} <= set(entry.preset)
        assert entry.source
        assert entry.scores["FID"] > 1
        assert f"d{entry.depth}" in entry.file


def test_a_name_may_pin_a_revision():
    pinned = zoo.find("var-d16@v1")
    assert pinned.revision == "v1"
    assert pinned.file == zoo.find("var-d16").file
    assert zoo.find("var-d17") is None


def test_entries_by_file_and_by_repository():
    assert zoo.of_file("mvar-finetune-d20.pth").name == "mvar-d20-finetuned"
    assert zoo.of_file("mvar-finetune-d20.pth", "var") is None
    assert zoo.of_file("my-own.pth") is None
    assert zoo.in_repository("CVLUESTC/MVAR") == NAMES[8:12]
    assert zoo.in_repository("someone/else") == []


def test_a_copy_of_neons_weights_is_a_var_with_their_preset(tmp_path):
    """Nested as its training program writes it, or bare."""
    case = Case(case_names()[0])
    state = to_official(case.var(), case.var().config)
    for values in ({"trainer": {"var_wo_ddp": state, "config": {}}}, {"trainer": state}, state):
        torch.save(values, tmp_path / "Neon_VARd16_imagenet256.pth")
        model = VAR.from_pretrained(tmp_path / "Neon_VARd16_imagenet256.pth")
        assert all(torch.equal(model.state_dict()[n], v) for n, v in case.var().state_dict().items())
        assert (model.config.guidance_scale, model.config.top_k, model.config.top_p) == (2.8, 900, 0.95)
        assert model.config.vqvae == "vae-ch160v4096z32"


SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def face():
    """A yellow face on white, drawn large and made small, as smooth as the real ones."""
    image = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((16, 16, 240, 240), fill="#ffcc33")
    for left in (80, 152):
        pen.ellipse((left, 88, left + 24, 128), fill="#402000")
    pen.arc((72, 96, 184, 200), 20, 160, fill="#402000", width=12)
    return image.resize((64, 64), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def vqvae():
    return VQVAE.from_pretrained("vae-emoji")


@torch.inference_mode()
def test_the_vqvae_keeps_a_face(vqvae):
    assert vqvae.config.sides == SIDES
    assert vqvae.config.resolution == 64
    original = to_tensor(face())[None]
    codes = vqvae.encode(original)
    assert codes.shape == (1, 680)
    (found,) = psnr(vqvae.decode(codes), original)
    shuffled = codes[:, torch.from_numpy(np.random.default_rng(0).permutation(680))]
    (broken,) = psnr(vqvae.decode(shuffled), original)
    print(f"{found:.1f} dB; codes in another order {broken:.1f} dB")
    assert found > 24
    assert broken < found - 6


@pytest.fixture(scope="module", params=["var-emoji", "mvar-emoji"])
def pipeline(request):
    return pipeline_for(request.param)


@torch.inference_mode()
def test_the_transformer_knows_a_face(pipeline, vqvae):
    """Codes of a face are likelier as a face than as a flag, and far likelier than by chance."""
    model = pipeline.model
    assert model.config.sides == SIDES
    assert len(model.config.class_names) == 18
    if model.config.model_type == "mvar":
        assert (model.config.kernel_size, model.config.dense_scales) == (7, 8)
    codes = vqvae.encode(to_tensor(face())[None])
    inputs = vqvae.quantizer.scale_inputs(codes)
    nats = {}
    for name in ("fluent-smileys-emotion", "noto-smileys-emotion", "noto-flags"):
        labels = torch.tensor([pipeline.label_of(name)])
        nats[name] = model.token_losses(labels, inputs, codes).mean().item()
    print(nats)
    assert nats["noto-flags"] > nats["noto-smileys-emotion"] + 0.05
    assert nats["noto-smileys-emotion"] < np.log(model.config.vocab_size) - 2


def test_it_draws_on_white_in_its_classes_colours(pipeline):
    """Like the emoji: corners are white, faces are yellow in the middle."""
    pictures = pipeline(["noto-smileys-emotion", "fluent-smileys-emotion"], num_images_per_label=4, seed=0)
    pixels = np.stack([np.asarray(picture) for picture in pictures]).astype(float) / 255
    assert pixels.shape == (8, 64, 64, 3)
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    middle = pixels[:, 16:48, 16:48].mean((0, 1, 2))
    print(corners.mean(), middle)
    assert corners.mean() > 0.95
    assert middle[0] > middle[2] + 0.2
    assert middle[1] > middle[2] + 0.1


def test_imagenet_names():
    names = zoo.imagenet_names()
    assert len(names) == zoo.IMAGENET_CLASSES == 1000
    assert names[0] == "tench, Tinca tinca"
    assert names[207] == "golden retriever"
    assert names[980] == "volcano"


def test_labels_by_synonym_and_by_number():
    pipeline = object.__new__(MVARPipeline)
    pipeline.model = argparse.Namespace(config=MVARConfig(depth=1, class_names=zoo.imagenet_names()))
    labels = "Golden Retriever", "tench", "TENCH, tinca tinca", "207", 3, np.int64(4)
    assert [pipeline.label_of(label) for label in labels] == [207, 0, 0, 207, 3, 4]
    with pytest.raises(ValueError, match=r"'golden retreiver': .*'golden retriever'"):
        pipeline.label_of("golden retreiver")
    with pytest.raises(ValueError, match=r"'crane' fits classes 134 \(crane.*\), 517"):
        pipeline.label_of("crane")
    with pytest.raises(ValueError, match="unknown label 'unicorn': its classes are tench"):
        pipeline.label_of("unicorn")
    with pytest.raises(TypeError, match="a label must be an int or a class name"):
        pipeline.label_of(1.5)
