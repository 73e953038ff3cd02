"""To the Hub and back: what is pushed loads again, and the usage on its card runs as it stands."""

import re
import subprocess
import sys

import pytest

from mvar_models import MVARPipeline
from mvar_models.checkpoints.push import CardFacts, model_card

from hub_server import TOKEN, hub, run_with_hub
from tiny_models import tiny_mvar, tiny_vqvae

_PUSH = """
import sys
from mvar_models import MVAR, MVARPipeline
cls = {"MVAR": MVAR, "MVARPipeline": MVARPipeline}[sys.argv[1]]
try:
    options = {"license": "mit", "base_model": "FoundationVision/var"}
    print(cls.from_pretrained(sys.argv[2]).push_to_hub(sys.argv[3], token=sys.argv[4], **options))
except PermissionError as error:
    sys.exit(f"PermissionError: {error}")
"""


@pytest.fixture
def saved(tmp_path):
    MVARPipeline(tiny_mvar(), tiny_vqvae()).save_pretrained(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("cls", ["MVAR", "MVARPipeline"])
def test_a_pushed_model_loads_and_its_card_runs(saved, cls):
    with hub(saved / "hub") as server:
        code, printed = run_with_hub(
            _PUSH,
            cls,
            str(saved / "saved"),
            "someone/ants",
            TOKEN,
            server=server,
            cache=saved / "cache",
            cwd=saved / "empty",
        )
        assert code == 0 and "/someone/ants/commit/" in printed, printed
        pushed = saved / "hub" / "someone" / "ants"
        assert (pushed / "model.safetensors").read_bytes() == (
            saved / "saved" / "model.safetensors"
        ).read_bytes()
        assert (pushed / "vqvae" / "config.json").is_file() == (cls == "MVARPipeline")
        card = (pushed / "README.md").read_text()
        expected = {
            "library_name: mvar",
            "license: mit",
            "base_model: FoundationVision/var",
            "- mvar",
            "| kernel_size | 3 |",
            "| top_k | 1200 |",
        }
        assert expected <= set(card.splitlines()), card
        (usage,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        code, printed = run_with_hub(usage, server=server, cache=saved / "cache", cwd=saved / "empty")
        assert code == 0, printed
        assert (saved / "empty" / "0.png").is_file() == (cls == "MVARPipeline")
        if cls == "MVARPipeline":  # what fine-tuning from this id takes by default
            script = (
                "from mvar_models import VQVAE; "
                "from mvar_models.checkpoints.checkpoint import open_checkpoint; "
                "VQVAE.from_pretrained(open_checkpoint('someone/ants').vqvae_name)"
            )
            code, printed = run_with_hub(script, server=server, cache=saved / "cache", cwd=saved / "empty")
            assert code == 0, printed


def test_a_refused_push_is_one_line(saved):
    with hub(saved / "hub") as server:
        code, printed = run_with_hub(
            _PUSH,
            "MVAR",
            str(saved / "saved"),
            "someone/ants",
            "hf_wrong",
            server=server,
            cache=saved / "cache",
            cwd=saved / "empty",
        )
    (said,) = printed.strip().splitlines()
    assert code == 1
    assert said.startswith("PermissionError: the Hub refused someone/ants") and "token=" in said


def test_cards_of_every_kind():
    for model, draws in ((tiny_mvar(), True), (tiny_vqvae(), False)):
        facts = CardFacts(type(model).__name__, model.config, model.num_parameters())
        card = model_card(facts, "someone/ants")
        assert card.data.license == "other"
        assert card.data.library_name == "mvar"
        assert card.data.pipeline_tag is None, "the Hub's only fitting tag says unconditional, which is wrong"
        assert ("class-conditional-image-generation" in card.data.tags) == draws
        assert model.config.model_type in card.data.tags
        assert f'{type(model).__name__}.from_pretrained("someone/ants")' in card.text
        assert f"{model.num_parameters():,} parameters" in card.text


def test_importing_the_models_does_not_import_the_hub():
    """Loading from disk needs no Hub.

    huggingface_hub alone would double the time of importing the pipeline.
    """
    code = "import sys, mvar_models.pipeline; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
