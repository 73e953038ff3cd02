"""Whatever stands in a layer's place is called: replaced, hooked, adapted, parametrized, quantized.

Fast paths read the weights of usual layers. Here each layer of each network is changed in every way, so that
its output or weight is multiplied by 1.5; training and sampling must then do what they do in a network whose
own weights are.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from mvar_models import MVAR, VAR, VQVAE
from mvar_models.networks.layers import input_dtype, is_plain
from mvar_models.networks.markov_var import RMSNorm
from mvar_models.networks.quantizer import MultiScaleQuantizer, ResidualConvolution
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.training.vqvae_task import Autoencode

from tiny_models import tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae

LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, RMSNorm, nn.Embedding)
FACTOR = 1.5


def randomized(network):
    """Zeros and tiny gates would hide what a layer does."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def with_changes(make, kind, **changes):
    return randomized(kind(make().config.replace(**changes)).eval())


NETWORKS = {
    "var": lambda: randomized(tiny_var()),
    "shared AdaLN": lambda: with_changes(tiny_var, VAR, shared_adaln=True, cosine_attention=False),
    "mvar": lambda: randomized(tiny_mvar()),
    "previous scales": lambda: with_changes(tiny_mvar, MVAR, previous_scales=1),
    "markov-var": lambda: randomized(tiny_markov_var()),
    # Every convolution serves a scale.
    "vqvae": lambda: with_changes(
        tiny_vqvae,
        VQVAE,
        channel_multipliers=(1, 1),
        sides=(1, 2),
        num_residual_convolutions=2,
        residual_convolution_of_scale=None,
    ),
}
EVERY = pytest.mark.parametrize("name", NETWORKS)
LABELS = torch.tensor([0, 2])


def trained(network):
    """Return what a step of training computes: the outputs, and the gradient of every parameter."""
    network.train().zero_grad()
    torch.manual_seed(3)
    if isinstance(network, ScaleTransformer):
        config = network.config
        codes = torch.randint(config.vocab_size, (2, config.length))
        outputs = [network.token_losses(LABELS, torch.randn(2, config.length - 1, 4), codes)]
    else:
        outputs = [each for each in Autoencode(network)(torch.randn(2, 3, 4, 4)) if each.is_floating_point()]
    sum(each.square().sum() for each in outputs).backward()
    network.eval()
    return [each.detach() for each in outputs]


@torch.no_grad()
def sampled(network):
    """Return what sampling computes for given codes, without a draw, which rounding might decide."""
    torch.manual_seed(4)
    if not isinstance(network, ScaleTransformer):
        latents = network.latents(torch.randn(2, 3, 4, 4))
        return [latents, network.decode(torch.randint(24, (2, 5))), network.quantizer.quantize(latents)[1]]
    state, found = network.new_guided_state(LABELS), []
    for scale, side in enumerate(network.config.sides):
        inputs = torch.randn(2, side * side if scale else 0, 4)
        hidden = network.step(state, torch.cat([inputs, inputs]), scale)
        found += [network.logits(hidden, state.class_embedding, slice(0, 2), state.constants), hidden]
    return found


def near(found, expected):
    return all(
        (a - b).abs().max() <= 3e-4 * b.abs().max().clamp_min(1) and a.dtype == b.dtype
        for a, b in zip(found, expected, strict=True)
    )


def layers(network, way=None):
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, LAYERS) and (way is None or applies(way, module))
    ]


def groups(names, most=13):
    """Split many layers into groups that are changed together, which saves time and overlooks none."""
    return [names[start::most] for start in range(min(most, len(names)))]


class Times(nn.Module):
    def forward(self, values):
        return FACTOR * values


class Wrapper(nn.Module):
    """As adapters are: another type, without the attributes of what it wraps."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.factor = layer, nn.Parameter(torch.tensor(FACTOR))

    def forward(self, inputs):
        return self.factor * self.layer(inputs)


def wrap(network, name):
    network.set_submodule(name, Wrapper(network.get_submodule(name)))


def hook(network, name):
    network.get_submodule(name).register_forward_hook(lambda module, args, output: FACTOR * output)


def own_forward(network, name):
    """As offloading does."""
    layer = network.get_submodule(name)
    usual = layer.forward
    layer.forward = lambda inputs: FACTOR * usual(inputs)


def global_hook(network, name):
    layer = network.get_submodule(name)

    def times(module, args, output):
        return FACTOR * output if module is layer else None

    return torch.nn.modules.module.register_module_forward_hook(times)


def pre_hook(network, name):
    network.get_submodule(name).register_forward_pre_hook(lambda module, args: (FACTOR * args[0],))


def parametrized(network, name):
    parametrize.register_parametrization(network.get_submodule(name), "weight", Times())


def old_weight_norm(network, name):
    layer = weight_norm(network.get_submodule(name))
    layer.weight_g.data *= FACTOR


def new_weight_norm(network, name):
    layer = parametrizations.weight_norm(network.get_submodule(name))
    layer.parametrizations.weight.original0.data *= FACTOR


def new_weight(network, name):
    layer = network.get_submodule(name)
    layer.weight = nn.Parameter(FACTOR * layer.weight.detach())


OUTPUT = (wrap, hook, own_forward, global_hook)
INPUT = (pre_hook, old_weight_norm, new_weight_norm)
WEIGHT = (parametrized, new_weight)


def applies(way, layer):
    """Norms are blind to the size of their input, embeddings take numbers, one convolution adds its input."""
    if isinstance(layer, ResidualConvolution):
        return way in WEIGHT
    return way not in INPUT or isinstance(layer, (nn.Linear, nn.Conv2d))


def folded(network, names, way):
    """Return the network with the layers' own weights changed instead."""
    network = copy.deepcopy(network)
    for name in names:
        layer = network.get_submodule(name)
        with torch.no_grad():
            layer.weight *= FACTOR
            if way in OUTPUT and getattr(layer, "bias", None) is not None:
                layer.bias *= FACTOR
    return network


@pytest.mark.parametrize("way", OUTPUT + INPUT + WEIGHT, ids=lambda way: way.__name__)
@EVERY
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_every_layer_changed_in_every_way(name, way):
    network, ignored = NETWORKS[name](), []
    for names in groups(layers(network, way)):
        changed = copy.deepcopy(network)
        sampled(changed)  # what a first draw kept must not outlive the change
        expected = folded(changed, names, way)
        handles = [way(changed, each) for each in names]
        for run in (sampled, trained):
            if not near(run(changed), run(expected)):
                ignored.append((names, run.__name__))
        for handle in filter(None, handles):
            handle.remove()
    assert not ignored


@EVERY
def test_gradients_reach_what_was_wrapped(name):
    network = NETWORKS[name]()
    for layer in layers(network):
        changed = copy.deepcopy(network)
        wrap(changed, layer)
        trained(changed)
        assert changed.get_submodule(layer).factor.grad is not None, layer


@EVERY
def test_every_module_calls_its_hooks(name):
    """Blocks, attention and feed-forward too: whoever looks at their outputs must see them."""
    network, silent, seen = NETWORKS[name](), [], set()
    for path, module in network.named_modules():
        # The quantizer is used by its methods; calling it is for training.
        if not path or type(module).forward is nn.Module.forward or isinstance(module, MultiScaleQuantizer):
            continue
        handles = [
            module.register_forward_hook(lambda *args: seen.add("output")),
            module.register_forward_pre_hook(lambda *args: seen.add("input")),
            module.register_full_backward_hook(lambda *args: seen.add("gradient")),
            module.register_full_backward_pre_hook(lambda *args: seen.add("output's gradient")),
        ]
        for run, expected in ((sampled, 2), (trained, 4)):
            seen.clear()
            run(network)
            if len(seen) < expected and not (path.startswith("encoder.conv_in") and len(seen) == 3):
                silent.append(f"{path} ({run.__name__}): only {sorted(seen)}")
        for handle in handles:
            handle.remove()
    assert not silent


@EVERY
def test_a_hook_on_gradients_alone_is_called(name):
    """It leaves the forward pass as it is, so a fast path is easily taken for the same."""
    network, seen = NETWORKS[name](), set()
    for layer in layers(network):
        module = network.get_submodule(layer)
        handle = module.register_full_backward_hook(lambda module, *args: seen.add(module))
        trained(network)
        handle.remove()
        assert module in seen, layer


@EVERY
def test_copies_and_pickles_are_the_same_network(name):
    network = NETWORKS[name]()
    expected = sampled(network)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert all(torch.equal(a, b) for a, b in zip(sampled(other), expected, strict=True))


@EVERY
def test_dynamic_quantization_of_linear_layers(name):
    network = NETWORKS[name]()
    quantized = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    assert name == "vqvae" or type(quantized.head) is not nn.Linear
    for found, expected in zip(sampled(quantized), sampled(network), strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() <= 0.1 * expected.norm()


def test_what_is_plain():
    layer = nn.Linear(2, 2)
    assert is_plain(layer) and not is_plain(nn.Identity())
    assert not is_plain(layer, kind=nn.Conv2d)


def test_the_type_of_inputs_is_that_of_the_first_weights():
    assert input_dtype(nn.Linear(2, 2).bfloat16()) == torch.bfloat16
    assert input_dtype(Wrapper(nn.Linear(2, 2)).half()) == torch.float16
    assert input_dtype(nn.Identity()) == torch.float32
