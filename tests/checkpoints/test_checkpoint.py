"""An opened checkpoint: what it knows of itself, each file read once, and always the files of one save."""

import functools
import logging
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image

from mvar_models import MVAR, VAR, VQVAE, MVARPipeline, VARPipeline
from mvar_models.checkpoints import checkpoint as opening
from mvar_models.checkpoints import tensor_files
from mvar_models.checkpoints.checkpoint import open_checkpoint
from mvar_models.checkpoints.official import to_official
from mvar_models.pipeline import model_for, pipeline_for
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.run_writer import RunWriter
from mvar_models.training.runs import start_transformer_run, train_transformer

from checkpoint_cases import official_file, one_line, small, small_vqvae
from fork_cases import Forked
from tiny_models import tiny_mvar, tiny_var, tiny_vqvae


@pytest.fixture
def reads(monkeypatch):
    """Counts of weights read, whoever reads them, and of config.json read."""
    counts = Counter()
    load_file, load = tensor_files.load_file, torch.load
    read_record = opening.read_record

    def counted_load_file(path, *args, **options):
        counts[Path(path).parent.name + "/" + Path(path).name] += 1
        return load_file(path, *args, **options)

    def counted_load(path, *args, **options):
        counts[Path(path).name] += 1
        return load(path, *args, **options)

    def counted_read_record(path, schema):
        counts[path.parent.name + "/" + path.name] += 1
        return read_record(path, schema)

    monkeypatch.setattr(tensor_files, "load_file", counted_load_file)
    monkeypatch.setattr(torch, "load", counted_load)
    monkeypatch.setattr(opening, "read_record", counted_read_record)
    return counts


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A repository org/tiny with a pipeline, and the downloads asked for."""
    root = tmp_path / "org" / "tiny"
    MVARPipeline(tiny_mvar(), tiny_vqvae()).save_pretrained(root)
    downloads = Counter()

    def download(repository, file, **options):
        assert repository == "org/tiny"
        downloads[file] += 1
        return str(root / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return downloads


FILES = ("tiny/config.json", "tiny/model.safetensors", "vqvae/config.json", "vqvae/model.safetensors")


@pytest.mark.parametrize("load", [pipeline_for, MVARPipeline.from_pretrained])
def test_a_pipeline_of_a_folder_reads_each_file_once(tmp_path, reads, load):
    MVARPipeline(tiny_mvar(), tiny_vqvae()).save_pretrained(tmp_path / "tiny")
    load(tmp_path / "tiny")
    assert reads == Counter(FILES)


@pytest.mark.parametrize("load", [pipeline_for, MVARPipeline.from_pretrained])
def test_a_pipeline_of_the_hub_downloads_and_reads_each_file_once(served, reads, load):
    load("org/tiny")
    assert reads == Counter(FILES)
    assert served == Counter(name.removeprefix("tiny/") for name in FILES)


def test_a_model_alone_leaves_the_vqvae_where_it_is(served, reads):
    assert isinstance(model_for("org/tiny"), MVAR)
    assert reads == Counter(FILES[:2])
    assert served == Counter(("config.json", "model.safetensors"))


def test_a_training_program_s_file_with_both_networks_is_read_once(tmp_path, reads):
    # A pyramid that is read off the tensors: the VQVAE's file names none, so both have the released sides.
    shape = {"vocab_size": 24, "z_channels": 4}
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    vqvae = VQVAE(VQVAE.config_class(**shape, channels=32, blocks_per_level=1, sides=sides))
    var = VAR(VAR.config_class(depth=1, width=64, num_heads=1, num_classes=3, sides=sides, **shape))
    networks = {"var_wo_ddp": to_official(var, var.config), "vae_local": to_official(vqvae, vqvae.config)}
    torch.save({"trainer": networks}, tmp_path / "ckpt.pth")
    pipeline = pipeline_for(tmp_path / "ckpt.pth")
    assert isinstance(pipeline, VARPipeline)
    assert torch.equal(pipeline.vqvae.decoder.conv_out.weight, vqvae.decoder.conv_out.weight)
    assert reads == Counter(("ckpt.pth",))


def test_facts_for_a_fine_tuning_start_cost_nothing_more(served, reads):
    """Kind, VQVAE and weights of what the run starts from, as training asks for them."""
    checkpoint = open_checkpoint("org/tiny")
    assert checkpoint.kind() == "mvar"
    assert checkpoint.vqvae_name.endswith("vqvae")
    assert checkpoint.config_values["kernel_size"] == 3
    MVAR.from_pretrained(checkpoint)
    VQVAE.from_pretrained(checkpoint.open_vqvae())
    assert reads == Counter(FILES)
    assert served == Counter(name.removeprefix("tiny/") for name in FILES)


def test_fine_tuning_reads_what_it_starts_from_once(tmp_path, reads):
    """From the command's start to the trained model; the VQVAE is also read for the settings."""
    MVARPipeline(tiny_mvar(), tiny_vqvae()).save_pretrained(tmp_path / "tiny")
    for name in tiny_mvar().config.class_names:
        (tmp_path / "data" / name).mkdir(parents=True)
        for shade in range(4):
            Image.new("RGB", (16, 16), (60 * shade, 0, 0)).save(tmp_path / "data" / name / f"{shade}.png")
    run = start_transformer_run(
        init=str(tmp_path / "tiny"),
        data=str(tmp_path / "data"),
        out=str(tmp_path / "run"),
        steps=0,
        accept_psnr=True,
    )
    train_transformer(run)
    assert {file: reads[file] for file in FILES} == {file: 2 if "vqvae" in file else 1 for file in FILES}


def test_an_opened_checkpoint_is_opened_as_it_is(tmp_path):
    tiny_var().save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert open_checkpoint(checkpoint) is checkpoint
    assert isinstance(checkpoint, opening.Checkpoint)


def test_a_bare_state_dict_needs_its_architecture(tmp_path):
    model = small(VAR)
    path = official_file(tmp_path / "a.pth", to_official(model, model.config))
    with pytest.raises(ValueError, match=r"a\.pth .*VAR or MVAR.*arch='var' or 'mvar'"):
        pipeline_for(path)
    small_vqvae().save_pretrained(tmp_path / "vae")
    assert isinstance(pipeline_for(path, arch="var", vqvae=tmp_path / "vae"), VARPipeline)


def test_the_vqvae_of_a_checkpoint_is_known_without_loading(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "read_values", lambda path: pytest.fail(f"{path} was read"))
    assert open_checkpoint("var-digits").vqvae_name == "vae-digits"
    assert open_checkpoint("mvar-d16").vqvae_name == "vae-ch160v4096z32"
    assert open_checkpoint("vae-digits").vqvae_name is None
    MVARPipeline(tiny_mvar(), tiny_vqvae()).save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).vqvae_name == str(tmp_path / "vqvae")
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        open_checkpoint("nothing")


def test_a_saved_pipeline_s_own_vqvae_counts_not_the_one_named_before(tmp_path):
    model = tiny_mvar()
    model.config = model.config.replace(vqvae="vae-digits")
    MVARPipeline(model, tiny_vqvae()).save_pretrained(tmp_path)
    loaded = MVARPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.vqvae.encoder.conv_in.weight, tiny_vqvae().encoder.conv_in.weight)
    assert loaded.model.config.vqvae is None
    assert model.config.vqvae == "vae-digits", "saving changes nothing in the model"
    assert open_checkpoint(tmp_path).vqvae_name == str(tmp_path / "vqvae")


def model_of(number):
    model = tiny_mvar()
    model.config = model.config.replace(guidance_scale=float(number))
    for parameter in model.parameters():
        parameter.data.fill_(number)
    return model


def write(how, folder):
    """Save models to a folder in turns, for ever: weights and guidance are the model's number."""

    def save(model, folder):
        saved = model if how == "model" else MVARPipeline(model, tiny_vqvae())
        saved.save_pretrained(folder)

    models = [model_of(number) for number in range(1, 4)]
    writer = RunWriter(RunFolder(folder.parent))
    while True:
        for model in models:
            if how == "run":
                writer.model("the model", folder, functools.partial(save, model))
            else:
                save(model, folder)
            (folder.parent / "saved").touch()


@pytest.fixture
def rewritten(tmp_path):
    """Start a process that writes a folder; return the folder."""
    started = []

    def start(how):
        folder = tmp_path / "best"
        started.append(Forked(lambda: write(how, folder)))
        while not (tmp_path / "saved").exists():
            assert started[-1].poll() is None
            time.sleep(0.01)
        return folder

    yield start
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("how", ["model", "pipeline", "run"])
def test_what_is_loaded_is_the_model_of_one_save(rewritten, how):
    folder = rewritten(how)
    load = MVAR.from_pretrained if how == "model" else lambda place: MVARPipeline.from_pretrained(place).model
    found = set()
    for _ in range(30):
        model = load(folder)
        tensors = model.state_dict().values()
        numbers = {value for tensor in tensors for value in (tensor.min().item(), tensor.max().item())}
        assert numbers == {model.config.guidance_scale}
        found |= numbers
    assert len(found) > 1, "the folder did not change while it was read"


def test_a_configuration_of_another_save_is_said(tmp_path, monkeypatch, caplog):
    """A save that was killed between its files, or an edited configuration: which one, nobody can tell."""
    monkeypatch.setattr(opening, "_PATIENCE", 0.05)
    model = tiny_mvar()
    model.save_pretrained(tmp_path / "one")
    model.config = model.config.replace(guidance_scale=9.0)
    model.save_pretrained(tmp_path / "two")
    with caplog.at_level(logging.WARNING):
        MVAR.from_pretrained(tmp_path / "one")
    assert not caplog.records
    shutil.copy(tmp_path / "one" / "config.json", tmp_path / "two")
    with caplog.at_level(logging.WARNING):
        MVAR.from_pretrained(tmp_path / "two")
    (record,) = caplog.records
    assert "two/config.json is not the one that model.safetensors was saved with" in record.getMessage()


def test_a_file_that_vanishes_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_PATIENCE", 0.05)
    tiny_mvar().save_pretrained(tmp_path)
    checkpoint = opening.open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors") as error:
        MVAR.from_pretrained(checkpoint)
    one_line(error)
