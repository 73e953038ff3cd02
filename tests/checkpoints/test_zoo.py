"""The zoo's entries: their facts, and how they are found by name, pattern, file and repository."""

import pytest

from mvar_models import list_models
from mvar_models.checkpoints import zoo

NAMES = [
    "vae-ch160v4096z32", "var-d16", "var-d20", "var-d24", "var-d30", "var-d36",
    "mvar-d16", "mvar-d16-finetuned", "mvar-d20-finetuned", "mvar-d24-finetuned",
    "markov-var-d16", "markov-var-d20", "markov-var-d24",
    "vae-digits", "var-digits", "mvar-digits", "vae-emoji", "var-emoji", "mvar-emoji",
]  # fmt: skip


def test_the_names():
    assert list_models() == NAMES
    assert list_models("*-digits") == NAMES[13:16]


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
    assert zoo.in_repository("CVLUESTC/MVAR") == NAMES[6:10]
    assert zoo.in_repository("someone/else") == []
