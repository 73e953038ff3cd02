"""Checkpoints from the Hub: a zoo name, an id with a revision, resuming, the cache offline, and one clear
line for what is not there.

The Hub is a server on this machine that speaks its file protocol; the released files' names and layouts, at a
tiny size.
"""

import pytest
import torch

from mvar_models import MVAR, VAR, MVARConfig, VARConfig
from mvar_models.checkpoints.official import to_official

from checkpoint_cases import sharded
from hub_server import hub, run_with_hub
from tiny_models import tiny_mvar

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
        ("VAR", "someone/absent", {}, "FileNotFoundError: someone/absent: no such repository"),
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
