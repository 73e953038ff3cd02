"""Our scorer of LSRS gives the released one's figures on every lsrs*.json in MVAR_GOLDEN_DIR."""

import numpy as np
import pytest
import torch

from mvar_models import VQVAE, VQVAEConfig
from mvar_models.networks.scorer import Scorer, ScorerConfig, ranking_loss, score_margins

from golden_weights import Case, assert_close_to_largest, case_names, fill, normal

SCORES, LOSS, GRADIENT = 2e-5, 1e-5, 1e-3


def released_name(name):
    """The name of one of our entries in a released state dict."""
    if name.startswith("stages."):
        _, stage, rest = name.split(".", 2)
        return f"conv_stage_{int(stage) + 1}.{rest}"
    for ours, theirs in (("class_", "class_label_"), ("scale_", "stage_label_")):
        if name.startswith(ours):
            return name.replace(ours, theirs, 1)
    return name


def formula(name, shape):
    """Value of one entry, see golden/README.md."""
    x = normal("scorer." + name, shape)
    if len(shape) == 4:
        x = x / np.float32(np.sqrt(np.prod(shape[1:])))
    elif len(shape) == 3:
        x = (1 if name.endswith("weight") else 0) + np.float32(0.1) * x
    elif len(shape) == 1:
        x = np.float32(0.1) * x
    elif "embedding" not in name:
        x = x / np.float32(np.sqrt(shape[-1]))
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


@pytest.fixture(scope="module", params=case_names("lsrs"))
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def scorer(case):
    model = Scorer(ScorerConfig(sides=case.config["patch_nums"]))
    state = {name: formula(released_name(name), value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def quantizer(case):
    config = VQVAEConfig(case.config["vocab_size"], 32, channels=32, sides=case.config["patch_nums"])
    return fill(VQVAE(config), "vae.").quantizer


def test_parameters_and_their_shapes(case, scorer):
    assert scorer.num_parameters() == case.figures["parameters"]
    shapes = {released_name(name): list(value.shape) for name, value in scorer.state_dict().items()}
    assert shapes == {name: shape for name, (shape, _) in case.figures["state_dict"].items()}


@torch.no_grad()
def test_scores(case, scorer):
    count = len(case.config["patch_nums"])
    maps = torch.from_numpy(normal(f"scorer.in.{case.config['seed']}", (count, 32, 16, 16)))
    labels = torch.tensor([111 * row % 1000 for row in range(count)])
    scores = scorer(maps, labels, torch.arange(count))
    torch.testing.assert_close(scores, case.tensors["scorer.scores"].flatten(), rtol=0, atol=SCORES)
    alone = torch.cat([scorer(maps[i : i + 1], labels[i : i + 1], i) for i in range(count)])
    torch.testing.assert_close(alone, scores, rtol=0, atol=SCORES)


def test_loss_and_gradients(case, scorer, quantizer):
    config = case.config
    rng = np.random.RandomState(config["seed"] + 1)
    length = sum(side * side for side in config["patch_nums"])
    codes = torch.from_numpy(rng.randint(0, config["vocab_size"], (len(case.labels), 2, length)))
    with torch.no_grad():
        sampled, real = (list(quantizer.accumulate(codes[:, which])) for which in (0, 1))
        scores = torch.stack(
            [
                torch.stack([scorer(maps[scale], case.labels, scale) for maps in (sampled, real)], dim=1)
                for scale in range(len(sampled))
            ]
        )
    torch.testing.assert_close(scores, case.tensors["train.scores"].view_as(scores), rtol=0, atol=SCORES)
    loss = ranking_loss(score_margins(scorer, sampled, real, case.labels))
    assert loss.item() == pytest.approx(case.figures["train_loss"], rel=LOSS)
    scorer.zero_grad()
    loss.backward()
    for name, parameter in scorer.named_parameters():
        expected = case.figures["train_grad_norm"][released_name(name)]
        assert parameter.grad.norm().item() == pytest.approx(expected, rel=GRADIENT, abs=1e-6), name


@torch.no_grad()
def test_the_chain_of_choices(case, scorer, quantizer):
    config, golden = case.config, case.tensors
    rng = np.random.RandomState(config["seed"])
    labels = case.labels
    f_hat = torch.zeros(len(labels), 32, 16, 16)
    for scale, side in enumerate(config["patch_nums"]):
        count = config["candidates"] if config["st"] <= scale < config["ed"] else 1
        codes = torch.from_numpy(rng.randint(0, config["vocab_size"], (len(labels), side * side, count)))
        maps = torch.stack(
            [f_hat + quantizer.contribution(codes[..., each], scale) for each in range(count)], dim=1
        )
        scores = scorer(maps.flatten(0, 1), labels.repeat_interleave(count), scale).view(-1, count)
        torch.testing.assert_close(scores, golden[f"select.scores.{scale}"], rtol=0, atol=SCORES)
        chosen = scores.argmax(1)
        assert chosen.tolist() == golden["select.chosen"][scale].tolist()
        f_hat = maps[torch.arange(len(labels)), chosen]
    assert_close_to_largest(f_hat, golden["select.f_hat"], 2e-5, "f_hat")


def test_a_ladder_that_does_not_end_in_eights_is_refused():
    with pytest.raises(ValueError, match="last side that is divisible by 8, got 12"):
        ScorerConfig(sides=(1, 2, 4, 12))


def test_saved_and_loaded(tmp_path):
    config = ScorerConfig(num_classes=3, z_channels=4, sides=(1, 2, 4, 8), width=8)
    scorer = Scorer(config).eval()
    scorer.save_pretrained(tmp_path)
    again = Scorer.from_pretrained(tmp_path)
    maps, labels = torch.randn(2, 4, 8, 8), torch.tensor([0, 2])
    assert again.config == config
    torch.testing.assert_close(again(maps, labels, 1), scorer(maps, labels, 1))
