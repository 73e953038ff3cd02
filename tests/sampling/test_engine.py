"""The engine: what is captured and what is not, graphs kept, and a loop that can be captured.

Capture itself needs a GPU. Here the loop is traced on meta tensors: it copies nothing from or to the
host, waits for no value, and has no shape that depends on values.
"""

import copy
import gc
import logging
import pickle
import weakref
from dataclasses import replace

import pytest
import torch

from benchmarks.core.shapes import Shape
from benchmarks.suites.engine import traces
from mvar_models import MVARPipeline
from mvar_models.randomness import UniformNumbers
from mvar_models.sampling import engine as module
from mvar_models.sampling.engine import Engine
from mvar_models.sampling.hooks import SpatialGuidance
from mvar_models.sampling.sampler import Sampler, SampleResult, guidance_weights, sample
from mvar_models.sampling.samplers import SmoothSampler
from mvar_models.sampling.settings import SamplingSettings

from tiny_models import split_options, tiny_mvar, tiny_var, tiny_vqvae

MODELS = pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
CUDA = torch.device("cuda")
SETTINGS = SamplingSettings(guidance_scale=1.5, top_k=8, top_p=0.0)
LABELS = torch.tensor([0, 2, 1])


def generators(first=7):
    return [torch.Generator().manual_seed(first + index) for index in range(3)]


@pytest.mark.parametrize("arch", ["var", "mvar"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_loop_can_be_captured(arch, batch):
    shape = Shape(2, width=64, batch=batch, vocab_size=64, dtype=torch.bfloat16)
    plain, ours = traces(shape, arch)
    assert ours.copies == [] and ours.reads == []
    assert len(plain.copies) == 10, "one copy of uniform numbers per scale, as the test expects to find"
    assert ours.kernels.total() < 0.6 * plain.kernels.total()


@pytest.mark.parametrize("arch", ["var", "mvar"])
def test_modulation_is_read_once_per_image(arch):
    """Six of 18 width^2 weights of a block, and the head's two, are read at one scale of ten."""
    shape = Shape(2, width=1024, dtype=torch.bfloat16)
    plain, ours = traces(shape, arch)
    assert ours.weight_bytes <= 0.72 * plain.weight_bytes
    width, depth, vocab = 1024, 2, 4096
    block, head = 12 * width**2 * depth, width * vocab
    # VAR has no scale without the unconditional half, but its head skips it where the weight is zero.
    expected = 10 * block + 6 * width**2 * depth + 19 * head + 2 * 2 * width**2 + 9 * 32 * width
    assert ours.weight_bytes == pytest.approx(2 * expected, rel=0.001)


@MODELS
def test_without_a_gpu_it_draws_and_decodes_the_same(make, caplog):
    model, vqvae = make(), tiny_vqvae()
    engine = Engine(model, vqvae)
    expected = sample(model, vqvae.quantizer, LABELS, generators(), SETTINGS)
    with caplog.at_level(logging.INFO, "mvar_models"):
        found = [engine.sample(LABELS, generators(), SETTINGS) for _ in range(2)]
    for drawn in found:
        assert torch.equal(drawn.indices, expected.indices)
        assert torch.equal(drawn.f_hat, expected.f_hat)
        with torch.no_grad():
            assert torch.equal(drawn.images, vqvae.decode_latents(expected.f_hat))
    assert [record.message for record in caplog.records] == [
        "no CUDA graph: graphs need a CUDA device, the model is on cpu; the loop runs step by step"
    ]


def test_scales_alone_go_through_it_too():
    model, vqvae = tiny_mvar(), tiny_vqvae()
    f_hat, scales = torch.randn(3, 4, 4, 4), range(1, 3)
    options = {"f_hat": f_hat, "scales": scales}
    found = Engine(model, vqvae).sample(LABELS, generators(), SETTINGS, **options)
    expected = sample(model, vqvae.quantizer, LABELS, generators(), SETTINGS, **options)
    assert torch.equal(found.f_hat, expected.f_hat)


def test_wrong_arguments_are_those_of_sample():
    engine = Engine(tiny_mvar(), tiny_vqvae())
    with pytest.raises(ValueError, match=r"generators.*\(3\), got 1"):
        engine.sample(LABELS, generators()[:1], SETTINGS)
    with pytest.raises(ValueError, match=r"guidance_scale.*\(3\), got 2"):
        engine.sample(LABELS, generators(), replace(SETTINGS, guidance_scale=[0.0, 1.0]))
    with pytest.raises(ValueError, match=r"most.*0"):
        Engine(tiny_mvar(), tiny_vqvae(), most=0)


class Own(Sampler):
    pass


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sampler": SmoothSampler()}, "SmoothSampler"),
        ({"sampler": Own()}, "Own"),
        ({"processors": [SpatialGuidance(1.0)]}, "processors"),
        ({"given": object()}, "given"),
        ({"on_scale": print}, "on_scale"),
        ({"keep_logits": True}, "logits"),
        ({"scales": range(2)}, "all scales"),
    ],
)
def test_what_is_not_captured_says_why(options, words):
    engine = Engine(tiny_mvar(), tiny_vqvae())
    settings, options = split_options(options)
    reason = engine.reason_against(settings, CUDA, **{"keep_logits": False, **options})
    assert words in reason and "\n" not in reason


def test_hooks_are_not_captured():
    model, vqvae = tiny_mvar(), tiny_vqvae()
    engine = Engine(model, vqvae)
    assert engine.reason_against(SETTINGS, CUDA, keep_logits=False) is None
    for network, hooked in ((model, model.blocks[1].mlp), (vqvae, vqvae.decoder.middle)):
        handle = hooked.register_forward_hook(lambda *args: None)
        assert "hook" in engine.reason_against(SETTINGS, CUDA, keep_logits=False)
        handle.remove()
        assert engine.reason_against(SETTINGS, CUDA, keep_logits=False) is None, network


def test_autocast_is_not_captured(monkeypatch):
    """Asked for by a monkeypatch: torch.autocast turns itself off where there is no GPU."""
    engine = Engine(tiny_mvar(), tiny_vqvae())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    assert "autocast" in engine.reason_against(SETTINGS, CUDA, keep_logits=False)


@pytest.fixture
def counted(monkeypatch):
    """Graphs that only count: an engine on the CPU whose captures always 'work'."""
    made = []

    class Graph:
        def __init__(self, model, vqvae, labels, settings, pool):
            made.append((len(labels), guidance_weights(model, settings), settings.top_k))

        def replay(self, labels, numbers):
            assert numbers.shape == (len(labels), 21)
            return SampleResult(labels, (numbers,), None, torch.zeros(len(labels), 3, 16, 16))

    as_if_on_a_gpu(monkeypatch, Graph)
    return made


def as_if_on_a_gpu(monkeypatch, graph):
    reason_against = Engine.reason_against
    monkeypatch.setattr(module, "_Graph", graph)
    monkeypatch.setattr(
        Engine,
        "reason_against",
        lambda self, settings, device, **options: reason_against(self, settings, CUDA, **options),
    )
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))


def draw(engine, batch, **options):
    settings = replace(SETTINGS, **options)
    return engine.sample(LABELS[:batch], generators()[:batch], settings, keep_logits=False)


def test_one_graph_per_batch_size_guidance_and_filters(counted):
    engine = Engine(tiny_mvar(), tiny_vqvae())
    for _ in range(2):
        draw(engine, 3)
        draw(engine, 2)
        draw(engine, 3, guidance_scale=2.0)
        draw(engine, 3, top_k=4)
    assert counted == [
        (3, (0, 0.75, 1.5), 8),
        (2, (0, 0.75, 1.5), 8),
        (3, (0, 1, 2), 8),
        (3, (0, 0.75, 1.5), 4),
    ]


def test_the_graph_used_longest_ago_goes_first(counted):
    engine = Engine(tiny_mvar(), tiny_vqvae(), most=2)
    for batch in (1, 2, 1, 3, 1, 2):
        draw(engine, batch)
    assert [batch for batch, _, _ in counted] == [1, 2, 3, 2]
    engine.clear()
    draw(engine, 2)
    assert len(counted) == 5


class Frozen:
    """What a graph is: the networks as they were, which read the same memory."""

    def __init__(self, model, vqvae, labels, settings, pool):
        tensors = [each for network in (model, vqvae) for each in (*network.parameters(), *network.buffers())]
        self.seen = [each.detach() for each in tensors]
        memory = dict(zip(map(id, tensors), self.seen))
        self.networks, self.settings = copy.deepcopy((model, vqvae), memory), settings

    def replay(self, labels, numbers):
        model, vqvae = self.networks
        uniform = UniformNumbers.of_tensor(numbers, model.pyramid)
        return module._sample_and_decode(model, vqvae, labels, uniform, self.settings)


class Negative(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args):
        return -self.layer(*args)


def new_head(pipe):
    head = torch.nn.Linear(32, 24)
    head.load_state_dict({name: -value for name, value in pipe.model.head.state_dict().items()})
    pipe.model.head = head


def other_model(pipe):
    pipe.model = tiny_mvar()
    new_head(pipe)


def other_vqvae(pipe):
    pipe.vqvae = tiny_vqvae()
    pipe.vqvae.decoder.conv_out.weight.data *= -3


def new_parameter(pipe):
    pipe.model.head.weight = torch.nn.Parameter(pipe.model.head.weight.detach() * -1)


def new_data(pipe):
    pipe.model.head.weight.data = pipe.model.head.weight.data * -1


def in_place(pipe):
    with torch.no_grad():
        pipe.model.head.weight.mul_(-1)


def adapted(pipe):
    pipe.model.head = Negative(pipe.model.head)


def hooked(pipe):
    pipe.model.blocks[0].mlp.register_forward_hook(lambda module, args, output: -output)


def own_forward(pipe):
    usual = pipe.model.head.forward
    pipe.model.head.forward = lambda inputs: -usual(inputs)


def parametrized(pipe):
    torch.nn.utils.parametrize.register_parametrization(
        pipe.model.head, "weight", Negative(torch.nn.Identity())
    )


def converted(pipe):
    pipe.to(torch.bfloat16)


def an_attribute(pipe):
    pipe.model.blocks[0].attention.scale = 30.0


def a_block_less(pipe):
    del pipe.model.blocks[1]


CHANGES = (
    other_model, other_vqvae, new_head, new_parameter, new_data, in_place, adapted, hooked, own_forward,
    parametrized, converted, an_attribute, a_block_less,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_network_is_what_draws(change, monkeypatch):
    """Whatever was captured before."""
    as_if_on_a_gpu(monkeypatch, Frozen)
    model = tiny_mvar()
    with torch.no_grad():  # an untrained block does next to nothing
        for parameter in model.blocks.parameters():
            parameter.add_(torch.randn_like(parameter))
    pipe = MVARPipeline(model, tiny_vqvae()).compile()

    def drawn(pipeline):
        return pipeline([0, 1, 2], seed=0, output_type="pt")

    def same(first, second):
        return torch.equal(first.images, second.images) and torch.equal(first.latents, second.latents)

    before = drawn(pipe)
    assert same(before, drawn(MVARPipeline(pipe.model, pipe.vqvae)))
    change(pipe)
    assert not same(drawn(pipe), before)
    assert same(drawn(pipe), drawn(MVARPipeline(pipe.model, pipe.vqvae)))


def test_values_may_change_in_place_and_settings_of_torch_may_not(counted):
    model = tiny_mvar()
    engine = Engine(model, tiny_vqvae())
    draw(engine, 1)
    with torch.no_grad():
        model.head.weight.mul_(2)
    draw(engine, 1)
    assert len(counted) == 1
    model.attention_backend = "reference"
    draw(engine, 1)
    assert len(counted) == 2
    torch.use_deterministic_algorithms(True)
    try:
        draw(engine, 1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(counted) == 3


def test_a_replaced_network_can_go(counted):
    """Graphs keep no network alive."""
    pipe = MVARPipeline(tiny_mvar(), tiny_vqvae()).compile()
    pipe([0], seed=0)
    old = weakref.ref(pipe.model)
    pipe.model = tiny_mvar()
    pipe([0], seed=0)
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copied_pipeline_captures_for_itself(copied, counted):
    pipe = MVARPipeline(tiny_mvar(), tiny_vqvae()).compile()
    pipe([0], seed=0)
    other = copied(pipe)
    other([0], seed=0)
    assert len(counted) == 2 and other._engine.model is other.model is not pipe.model


def test_a_failed_capture_is_tried_once(monkeypatch, counted, caplog):
    tries = []

    class Failing:
        def __init__(self, *args):
            tries.append(args)
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(module, "_Graph", Failing)
    model, vqvae = tiny_mvar(), tiny_vqvae()
    engine = Engine(model, vqvae)
    with caplog.at_level(logging.INFO, "mvar_models"):
        found = [draw(engine, 3) for _ in range(2)]
    assert len(tries) == 1
    assert caplog.text.count("capture failed (operation not permitted when stream is capturing)") == 1
    expected = sample(model, vqvae.quantizer, LABELS, generators(), SETTINGS)
    assert all(torch.equal(drawn.indices, expected.indices) for drawn in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
@MODELS
def test_graphs_draw_what_the_loop_draws(make, guidance_scale):
    """Bit for bit, for other labels and seeds than those of the capture, after other graphs were replayed."""
    model, vqvae = make().cuda(), tiny_vqvae().cuda()
    engine, settings = Engine(model, vqvae), replace(SETTINGS, guidance_scale=guidance_scale)
    for labels, first in ((LABELS, 7), (LABELS[:1], 7), (LABELS.flip(0), 20), (LABELS[1:2], 30)):
        labels = labels.cuda()
        given = (labels, generators(first)[: len(labels)], settings)
        expected = sample(model, vqvae.quantizer, *given)
        found = engine.sample(labels, generators(first)[: len(labels)], settings, keep_logits=False)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.f_hat, expected.f_hat)
        with torch.no_grad():
            assert torch.equal(found.images, torch.cat(list(vqvae.decode_slices(expected.f_hat))))
    assert len(engine._graphs) == 2 and None not in engine._graphs.values()
