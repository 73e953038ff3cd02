"""What a name, a folder or a Hub id becomes, and what is said of one that leads nowhere."""

import huggingface_hub
import pytest

from mvar_models import VAR
from mvar_models.checkpoints.locate import locate, looks_like_hub_id

from checkpoint_cases import official_file, one_line, refused_in_one_line, saved
from tiny_models import tiny_var


def test_a_name_that_is_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing: .*in the zoo .*mvar-digits"):
        VAR.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["runs/modl", "weights/var_d16.pth", "./x/y", "a.safetensors"])
def test_a_path_that_is_nowhere_is_no_question_to_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **options: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match=rf"^{name}: no such file or folder") as error:
        VAR.from_pretrained(name)
    one_line(error)


def test_a_revision_says_that_the_hub_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert locate("runs/modl@main").repository == "runs/modl"
    assert locate("org/modl").repository == "org/modl"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("peer closed connection without sending complete message body\n(received 3 bytes)"),
        ValueError("Repo id must use alphanumeric chars"),
        ConnectionError(),
    ],
)
def test_whatever_the_hub_s_library_raises_is_one_line(error, monkeypatch):
    def download(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("mvar_models.checkpoints.locate.hub_answers", lambda: True)
    with pytest.raises(FileNotFoundError, match=r"^org/name: model\.safetensors could not be dow") as found:
        VAR.from_pretrained("org/name")
    one_line(found)


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no model\.safetensors"):
        VAR.from_pretrained(tmp_path / "empty")


def test_a_folder_that_holds_an_official_file_says_so(tmp_path):
    official_file(tmp_path / "var_d16.pth", {})
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors; it holds var_d16\.pth: "):
        VAR.from_pretrained(tmp_path)


def test_a_folder_without_its_config(tmp_path):
    folder = saved()(tmp_path)
    (folder / "config.json").unlink()
    refused_in_one_line(VAR, folder, r"has no config\.json")


def test_a_run_folder_is_its_final_model_else_its_best(tmp_path, caplog):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match="the folder of a run that has no model yet"):
        locate(tmp_path)
    caplog.set_level("INFO", "mvar_models.checkpoints")
    for inside in ("best", "model"):
        tiny_var().save_pretrained(tmp_path / inside)
        assert locate(tmp_path).weights == str(tmp_path / inside / "model.safetensors")
        assert caplog.messages[-1] == f"{tmp_path} is a run folder: its model is {tmp_path / inside}"


def test_a_misspelt_zoo_name_says_which_is_nearest():
    with pytest.raises(FileNotFoundError, match="did you mean mvar-digits or"):
        locate("mvar-digit")


def test_files_of_a_folder_and_of_a_repository(tmp_path):
    tiny_var().save_pretrained(tmp_path / "inner")
    source = locate(tmp_path, "inner")
    assert source.fetch(source.weights) == tmp_path / "inner" / "model.safetensors"
    assert source.fetch(source.config) == tmp_path / "inner" / "config.json"
    source = locate("org/name@v1", "inner")
    assert (source.repository, source.hub.revision) == ("org/name", "v1")
    assert (source.weights, source.config) == ("inner/model.safetensors", "inner/config.json")


@pytest.mark.parametrize(
    "name, expected",
    [("org/name", True), ("org/name@v1", True), ("name", False), ("a/b/c", False), ("../x", False)],
)
def test_hub_ids(name, expected):
    assert looks_like_hub_id(name) == expected
