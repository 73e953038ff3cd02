"""The table of backends, the protocol that they follow, and what "auto" takes."""

import inspect
import logging
import pkgutil

import pytest
import torch

from mvar_kernels import Neighborhood, dispatch, spatial_markov_attn
from mvar_kernels.backends import AttentionCall, Backend
from mvar_kernels.dispatch import BACKENDS, automatic, faster_on_cpu, load

from kernel_cases import PYRAMID_256


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("function", ["can_run", "forward", "backward"])
def test_every_backend_follows_the_protocol(name, function):
    """Type checkers cannot see this, as modules are imported by name."""
    expected = list(inspect.signature(getattr(Backend, function)).parameters)[1:]
    assert list(inspect.signature(getattr(load(name), function)).parameters) == expected


@pytest.mark.parametrize("name", BACKENDS)
def test_no_submodule_hides_a_function_of_the_protocol(name):
    """Importing `backend.forward` would replace the function forward of the package, after the first call."""
    paths = getattr(load(name), "__path__", [])
    assert not {module.name for module in pkgutil.iter_modules(paths)} & {"can_run", "forward", "backward"}


@pytest.mark.parametrize("name", ["auto", "natten"])
def test_only_names_in_the_table_are_loaded(name):
    with pytest.raises(ValueError, match=f"'triton'.*'reference'.*got '{name}'"):
        load(name)


def square(side, window):
    return Neighborhood.of_grids((side, side), (side, side), (window, window))


def call_of(neighborhood, device="cpu"):
    query = torch.zeros(1, neighborhood.num_queries, 1, 8, device=device)
    return AttentionCall(query, query, query, None, neighborhood, 1.0)


def test_auto_on_a_cpu_follows_the_work():
    """Small and dense grids go to sdpa, large windowed ones to tiled."""
    assert faster_on_cpu(square(8, 7)).backend == "sdpa"
    assert faster_on_cpu(square(64, 7)).backend == "tiled"
    assert faster_on_cpu(PYRAMID_256.causal_neighborhood()).backend == "sdpa"
    assert automatic(call_of(square(8, 7))).backend == "sdpa"


def test_auto_elsewhere_takes_triton_where_it_runs(monkeypatch):
    call = call_of(square(8, 7), device="meta")
    triton = load("triton")
    monkeypatch.setattr(triton, "can_run", lambda call: None)
    assert automatic(call).backend == "triton"
    monkeypatch.setattr(triton, "can_run", lambda call: "for a test")
    choice = automatic(call)
    assert choice.backend == "tiled"
    assert "for a test" in choice.reason


def test_auto_logs_a_choice_once(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_logged", set())
    tensor = torch.zeros(1, 8, 8, 1, 4)
    with caplog.at_level(logging.INFO, logger="mvar_kernels"):
        for _ in range(3):
            spatial_markov_attn(tensor, tensor, tensor, 3)
    assert [record.args[:2] for record in caplog.records] == [("sdpa", "cpu")]


@pytest.mark.parametrize("side", [8, 24], ids=["sdpa", "tiled"])
@pytest.mark.parametrize(
    "options",
    [{}, {"return_lse": True}, {"logit_scale": torch.ones(1)}],
    ids=["plain", "lse", "cosine"],
)
def test_auto_is_decided_once_per_call_forward_and_backward(monkeypatch, side, options):
    decided = []
    monkeypatch.setattr(dispatch, "automatic", lambda call: decided.append(1) or automatic(call))
    tensor = torch.randn(1, side, side, 1, 4, requires_grad=True)
    result = spatial_markov_attn(tensor, tensor, tensor, 3, **options)
    out = result[0] if "return_lse" in options else result
    out.sum().backward()
    assert len(decided) == 1


def test_graphs_keep_auto():
    """A graph may be traced on one device and run on another, so its operators decide where they run."""
    names = []

    def looks(graph, inputs):
        names.extend(str(node.args[-1]) for node in graph.graph.nodes if "attention" in str(node.target))
        return graph

    tensor = torch.randn(1, 24, 24, 1, 4)
    compiled = torch.compile(lambda x: spatial_markov_attn(x, x, x, 3), backend=looks, fullgraph=True)
    compiled(tensor)
    assert names == ["auto"]


def eager_calls(monkeypatch, *arguments, **options):
    """Count how often sdpa's eager shortcut serves a call."""
    sdpa, calls = load("sdpa"), []
    shortcut = sdpa.eager_forward
    monkeypatch.setattr(sdpa, "eager_forward", lambda *inputs: calls.append(1) or shortcut(*inputs))
    spatial_markov_attn(*arguments, **options)
    return len(calls)


def test_small_grids_skip_the_operators_on_a_cpu(monkeypatch):
    tensor = torch.zeros(1, 8, 8, 1, 4)
    assert eager_calls(monkeypatch, tensor, tensor, tensor, 3) == 1


@pytest.mark.parametrize(
    "options",
    [{"return_lse": True}, {"logit_scale": torch.ones(1)}, {"backend": "sdpa"}],
    ids=["lse", "cosine", "named"],
)
def test_what_only_the_operators_can_do_goes_through_them(monkeypatch, options):
    tensor = torch.zeros(1, 8, 8, 1, 4)
    assert eager_calls(monkeypatch, tensor, tensor, tensor, 3, **options) == 0
