"""A run folder's checkpoints and models are complete or absent, and its metrics end where a run resumes."""

import json
import pickle
from dataclasses import replace

import pytest
import torch

from mvar_models.training.run_folder import RunFolder
from mvar_models.training.run_writer import RunWriter
from mvar_models.training.settings import TransformerSettings

GOOD = {
    "step": 3,
    "loss_scale": {"factor": 1.0, "good_steps": 0, "skipped_steps": 0},
    "best": None,
    "examples": 4,
    "fingerprint": "x",
    "stamps": "",
}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(TransformerSettings(data="digits", out=str(tmp_path / "run")))


def checkpoint(folder, step, keep=2, task=None, tensors=None):
    def save(path):
        (path / "tensors").write_text(tensors or str(step))

    RunWriter(folder).checkpoint(save, {**GOOD, "step": step}, task or {}, everywhere=False, keep=keep)
    return folder.checkpoint_of(step)


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_a_folder_with_settings_alone_is_reused(folder):
    settings = TransformerSettings(data="digits", out=str(folder.path), steps=5)
    assert RunFolder.create(settings).read_settings() == settings
    folder.log({"step": 1})
    assert RunFolder.create(settings).read_settings() == settings, "the same command starts it again"
    with pytest.raises(FileExistsError, match=r"--resume .*--out"):
        RunFolder.create(replace(settings, steps=6))
    checkpoint(folder, 5)
    with pytest.raises(FileExistsError, match=r"--resume .*--out"):
        RunFolder.create(settings)


def test_checkpoints(folder):
    assert folder.last_step() == 0
    for step in (5, 10, 1_000_000):
        checkpoint(folder, step, task={"adversary": torch.ones(2)})
    assert names(folder.checkpoints) == ["step-000010", "step-1000000"], "the last two are kept"
    assert folder.last_step() == 1_000_000
    read = folder.checkpoint(10)
    assert read.step == 10
    assert torch.equal(read.task["adversary"], torch.ones(2))
    assert (read.folder / "tensors").read_text() == "10"


def test_a_checkpoint_replaces_one_of_its_step(folder):
    checkpoint(folder, 5)
    checkpoint(folder, 5, tensors="again")
    assert names(folder.checkpoints) == ["step-000005"]
    assert (folder.checkpoints / "step-000005" / "tensors").read_text() == "again"


def test_an_unfinished_checkpoint_does_not_count(folder):
    checkpoint(folder, 5)
    (folder.checkpoints / ".writing-000010").mkdir()
    assert folder.last_step() == 5
    folder.remove_leftovers()
    assert names(folder.checkpoints) == ["step-000005"]


def test_a_checkpoint_that_cannot_be_read(folder):
    (checkpoint(folder, 5) / "progress.json").write_text("{")
    with pytest.raises(ValueError, match=r"step-000005 .*remove it"):
        folder.checkpoint(5)


def test_metrics_end_where_a_run_resumes(folder):
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 1.0 / step})
    folder.log({"step": 2, "val_loss": 0.5})
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 4, "lo')
    folder.forget_after(2)
    assert [line["step"] for line in folder.metrics()] == [1, 2, 2]
    assert folder.figure(2, "val_loss") == 0.5
    assert folder.figure(1, "val_loss") is None
    assert folder.figure(3, "loss") is None


@pytest.mark.parametrize(
    "change, said",
    [
        ([], "must be an object"),
        ({**GOOD, "step": "3"}, "step must be a whole number, got '3'"),
        ({**GOOD, "step": 4}, "is of step 4"),
        ({**GOOD, "loss_scale": 1}, "loss_scale must be an object"),
        ({**GOOD, "loss_scale": {**GOOD["loss_scale"], "factor": 0}}, r"loss_scale\.factor"),
        ({**GOOD, "best": "low"}, "best must be a number"),
        ({name: GOOD[name] for name in GOOD if name != "best"}, "lacks the entry best"),
    ],
)
def test_damaged_progress_is_one_line(tmp_path, change, said):
    folder = tmp_path / "checkpoints" / "step-000003"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps(GOOD))
    assert RunFolder(tmp_path).checkpoint(3).step == 3
    (folder / "progress.json").write_text(json.dumps(change))
    with pytest.raises(ValueError, match=rf"step-000003 is not a checkpoint.*{said}.*remove it"):
        RunFolder(tmp_path).checkpoint(3)


class Code:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    "content", [pickle.dumps(Code()), b"junk" * 99, b"PK\x03\x04junk", b"", b"\x80\x02."]
)
def test_a_task_with_code_or_junk_is_one_line(tmp_path, content, capsys):
    folder = tmp_path / "checkpoints" / "step-000003"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps(GOOD))
    (folder / "task.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"step-000003 is not a checkpoint.*task\.pt") as raised:
        RunFolder(tmp_path).checkpoint(3)
    assert "\n" not in str(raised.value) and not capsys.readouterr().out


@pytest.mark.parametrize("line", ["{}", "[]", '{"step": "3"}', '{"step": true}', "{", '{"step": NaN}'])
def test_a_damaged_line_of_metrics_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2"):
        RunFolder(tmp_path).metrics()


def test_other_folders_beside_checkpoints_are_not_ours(tmp_path):
    for name in ("step-abc", "step-", "step-000004-old", "step--00001", "step-000002"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert RunFolder(tmp_path).last_step() == 2


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo\n{"step": 4}\n', b"\0" * 100], ids=["torn", "zeros"])
def test_a_crash_that_damaged_the_end_of_the_metrics_keeps_no_run_from_going_on(folder, tail, caplog):
    for step in range(1, 4):
        folder.log({"step": step})
    with folder.metrics_file.open("ab") as file:
        file.write(tail)
    folder.forget_after(2)
    assert [line["step"] for line in folder.metrics()] == [1, 2]
    assert "goes on with the 3 lines before it" in caplog.text


def test_text_that_looks_like_a_number_is_read_back(tmp_path):
    settings = TransformerSettings(data="digits", out=str(tmp_path / "run"), vqvae="1e5")
    assert RunFolder.create(settings).read_settings().vqvae == "1e5"
