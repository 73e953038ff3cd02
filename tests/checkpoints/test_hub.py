"""From the Hub and to it: downloads, errors in one line, and cards whose usage runs as it stands.

The Hub is a server on this machine that speaks its file protocol; the released files' names and layouts, at a
tiny size.
"""

import re
import subprocess
import sys

import pytest
import torch

from mvar_models import MVAR, VAR, MVARConfig, MVARPipeline, VARConfig
from mvar_models.checkpoints.official import to_official
from mvar_models.checkpoints.push import CardFacts, model_card

from checkpoint_cases import sharded
from hub_server import TOKEN, hub, run_with_hub
from tiny_models import tiny_mvar, tiny_vqvae

_LOAD = """
import sys, torch
from mvar_models import MVAR, VAR, VQVAE
cls, name, options = {"MVAR": MVAR, "VAR": VAR, "VQVAE": VQVAE}[sys.argv[1]], sys.argv[2], eval(sys.argv[3])
try:
    model = cls.from_pretrained(name, **options)
except (FileNotFoundError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(getattr(model.config, "depth", ""), sum(float(p.double().sum()) for p in model.parameters()))
"""


@pytest.fixture
def served(tmp_path):
    """A Hub with the official file of a VAR, an MVAR inside a training checkpoint, and a folder that
    save_pretrained wrote.
    """
    torch.manual_seed(0)
    root = tmp_path / "hub"
    for name in ("FoundationVision/var", "CVLUESTC/MVAR", "someone/tiny-mvar"):
        (root / name).mkdir(parents=True)
    shape = {"depth": 2, "width": 32, "num_heads": 2, "num_classes": 3, "vocab_size": 24, "z_channels": 4}
    models = {"VAR": VAR(VARConfig(**shape)), "MVAR": MVAR(MVARConfig(**shape))}
    torch.save(to_official(models["VAR"], models["VAR"].config), root / "FoundationVision/var/var_d16.pth")
    torch.save(
        {"trainer": {"mvar_wo_ddp": to_official(models["MVAR"], models["MVAR"].config)}, "epoch": 3},
        root / "CVLUESTC/MVAR/mvar-d16.pth",
    )
    models["MVAR"].save_pretrained(root / "someone/tiny-mvar")
    (root / "someone/empty").mkdir()
    (root / "someone/empty/README.md").touch()
    with hub(root) as server:
        yield server, models, tmp_path / "cache"


def load(server, cache, cls, name, **options):
    """In a process of its own. Return its output, or its error line."""
    code, printed = run_with_hub(_LOAD, cls, name, repr(options), server=server, cache=cache)
    last = [line for line in printed.splitlines() if line.strip()][-1]
    return last.split() if code == 0 else last


def fingerprint(model):
    return sum(p.detach().double().sum().item() for p in model.parameters())


def downloads(server):
    return [request for request in server.requests if request[0] == "GET" and "/resolve/" in request[1]]


def test_a_zoo_name_downloads_once_and_works_offline(served):
    server, models, cache = served
    first = load(server, cache, "VAR", "var-d16")
    assert isinstance(first, list), first
    depth, total = first
    assert depth == str(models["VAR"].config.depth) and float(total) == pytest.approx(
        fingerprint(models["VAR"]), abs=1e-9
    )
    assert len(downloads(server)) == 1
    assert load(server, cache, "VAR", "var-d16") == [depth, total]
    assert len(downloads(server)) == 1, "the second time it comes from the cache"
    assert load(None, cache, "VAR", "var-d16") == [depth, total]
    assert load(None, cache, "VAR", "var-d16", local_files_only=True) == [depth, total]


def test_a_cut_connection_is_resumed(served):
    """The file is larger than the 10 MB pieces in which huggingface_hub writes, so that a first piece has
    arrived when the line breaks.
    """
    server, _, cache = served
    model = VAR(VARConfig(depth=4, width=256, num_heads=4, num_classes=3, vocab_size=24, z_channels=4))
    file = server.root / "FoundationVision/var/var_d24.pth"
    torch.save(to_official(model, model.config), file)
    assert file.stat().st_size > 15_000_000
    server.cut_after = 14_000_000
    found = load(server, cache, "VAR", "var-d24")
    found = load(server, cache, "VAR", "var-d24") if isinstance(found, str) else found
    assert float(found[1]) == pytest.approx(fingerprint(model), abs=1e-9)
    begun = [
        int(request[2].removeprefix("bytes=").split("-")[0]) for request in downloads(server) if request[2]
    ]
    assert begun and begun[-1] >= 10_000_000, f"what had arrived was asked for again: {downloads(server)}"


def test_ids_revisions_and_tokens(served):
    server, models, cache = served
    expected = pytest.approx(fingerprint(models["MVAR"]), abs=1e-9)
    assert float(load(server, cache, "MVAR", "someone/tiny-mvar@v1", token="hf_secret")[1]) == expected
    assert any("/resolve/v1/" in request[1] for request in server.requests)
    assert any(request[3] == "Bearer hf_secret" for request in server.requests)
    assert float(load(server, cache, "MVAR", "someone/tiny-mvar", revision="v1")[1]) == expected
    assert float(load(server, cache, "MVAR", "mvar-d16")[1]) == expected, (
        "the model inside a training checkpoint"
    )
    assert "mvar-d16.pth" in server.requests[-1][1] and "/resolve/main/" in server.requests[-1][1]
    assert (
        float(load(server, cache, "MVAR", "mvar-d16@v1")[1]) == expected
        and "/resolve/v1/" in server.requests[-1][1]
    )


def test_shards_are_downloaded_by_their_index(served):
    """Also from the cache alone, where the file that is not in the repository was never downloaded."""
    server, _, cache = served
    sharded(server.root / "someone/shards")
    first = load(server, cache, "MVAR", "someone/shards")
    assert isinstance(first, list), first
    assert float(first[1]) == pytest.approx(fingerprint(tiny_mvar()), abs=1e-9)
    assert len(downloads(server)) == 4, "two shards, their index and config.json"
    assert load(server, cache, "MVAR", "someone/shards", local_files_only=True) == first
    assert load(None, cache, "MVAR", "someone/shards") == first


@pytest.mark.parametrize(
    "cls, name, options, message",
    [
        (
            "VAR",
            "someone/absent",
            {},
            "FileNotFoundError: someone/absent: no such folder here, and no such repository",
        ),
        ("MVAR", "someone/tiny-mvar@v9", {}, "FileNotFoundError: someone/tiny-mvar"),
        (
            "MVAR",
            "someone/empty",
            {},
            "FileNotFoundError: someone/empty: the repository has no model.safetensors",
        ),
        ("VAR", "var-d20", {}, "FileNotFoundError: FoundationVision/var: the repository has no var_d20.pth"),
        (
            "VAR",
            "var-d16",
            {"local_files_only": True},
            "FileNotFoundError: FoundationVision/var: var_d16.pth is not in the local cache",
        ),
        (
            "VAR",
            "FoundationVision/var",
            {},
            "ValueError: FoundationVision/var holds several released files; name one of its models: vae",
        ),
        ("VQVAE", "var-d16", {}, "ValueError: var-d16 is a var model, expected vqvae"),
    ],
)
def test_what_is_not_there_is_one_line(served, cls, name, options, message):
    server, _, cache = served
    said = load(server, cache, cls, name, **options)
    assert isinstance(said, str) and said.startswith(message), said


def test_unreachable_hub_is_one_line(tmp_path):
    said = load(None, tmp_path, "VAR", "var-d16")
    assert isinstance(said, str) and "is not in the local cache and the Hub cannot be reached" in said, said


_PUSH = """
import sys
from mvar_models import MVAR, MVARPipeline
cls = {"MVAR": MVAR, "MVARPipeline": MVARPipeline}[sys.argv[1]]
try:
    options = {"license": "mit", "base_model": "FoundationVision/var"}
    print(cls.from_pretrained(sys.argv[2]).push_to_hub(sys.argv[3], token=sys.argv[4] or True, **options))
except OSError as error:
    sys.exit(f"{type(error).__name__}: {error}")
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


@pytest.mark.parametrize(
    "reached, token, message",
    [
        (True, "hf_wrong", r"PermissionError: the Hub refused someone/ants: .*token="),
        (True, "", r"PermissionError: someone/ants needs an access token, and none is stored .*token="),
        (False, TOKEN, r"OSError: someone/ants could not be uploaded: \S+"),
    ],
    ids=["refused", "without a token", "unreachable"],
)
def test_a_refused_push_is_one_line(saved, reached, token, message):
    with hub(saved / "hub") as server:
        code, printed = run_with_hub(
            _PUSH,
            "MVAR",
            str(saved / "saved"),
            "someone/ants",
            token,
            server=server if reached else None,
            cache=saved / "cache",
            cwd=saved / "empty",
        )
    (said,) = printed.strip().splitlines()
    assert code == 1
    assert re.match(message, said), said


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
