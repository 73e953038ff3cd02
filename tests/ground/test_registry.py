"""The table of architectures: every row resolves, agrees with its classes, and costs no import to read."""

import subprocess
import sys

import pytest

from mvar_models import registry
from mvar_models.checkpoints.pretrained import PretrainedModel
from mvar_models.config import Config
from mvar_models.pipeline import Pipeline


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_every_row_resolves_and_agrees_with_its_classes(name):
    row = registry.architecture(name)
    config, network = row.config_class(), row.network_class()
    assert row.name == name == config.model_type
    assert issubclass(config, Config)
    assert issubclass(network, PretrainedModel)
    assert network.config_class is config
    if row.is_generator:
        pipeline = row.pipeline_class()
        assert issubclass(pipeline, Pipeline)
        assert pipeline.model_class is network
    for other in row.starts_from:
        assert other in registry.ARCHITECTURES
        assert callable(network.from_checkpoint)


def test_every_config_class_has_a_row():
    """A config class that the table lacks would be written to config.json and never found again."""
    found, pending = set(), [Config]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.model_type and kind.__module__.startswith("mvar_models"):
            found.add(kind.model_type)
    assert found == set(registry.ARCHITECTURES)


def test_released_entries_that_share_a_name_are_told_apart_by_a_mark():
    rows = [row for row in registry.ARCHITECTURES.values() if row.released_entry]
    kinds = {(row.released_entry, row.released_mark) for row in rows}
    assert len(kinds) == len(rows)
    assert registry.marked({"context_pool.ca.mat_q": 0}).name == "markov-var"
    assert registry.marked({"pos_1LC": 0}) is None


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'gan'.*vqvae, var, mvar"):
        registry.architecture("gan")


def test_a_row_without_pipeline_says_so():
    with pytest.raises(ValueError, match="VQVAE has no pipeline"):
        registry.architecture("vqvae").pipeline_class()


def test_choices_follow_the_table(monkeypatch):
    assert registry.generator_names() == ["var", "mvar", "markov-var"]
    assert registry.generator_titles() == "VAR, MVAR or Markov-VAR"
    toy = registry.Architecture("toy", "Toy", "a:A", "b:B", "c:C", paper="0000.00000", description="A toy.")
    monkeypatch.setitem(registry.ARCHITECTURES, "toy", toy)
    assert registry.generator_names() == ["var", "mvar", "markov-var", "toy"]
    assert registry.generator_titles() == "VAR, MVAR, Markov-VAR or Toy"


def test_reading_the_table_imports_no_network():
    """The module is loaded from its file, because importing the package imports the networks."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('registry', {registry.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['registry'] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert module.generator_names(), 'empty table'\n"
        "assert 'torch' not in sys.modules and 'mvar_models' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
