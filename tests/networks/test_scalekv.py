"""ScaleKV: released cuts and budgets, caches that keep all or less, and what cannot be cut."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from mvar_models import VAR, VQVAE, VARConfig, VARPipeline, VQVAEConfig
from mvar_models.networks.scalekv import (
    CACHE_RULES,
    ScaleKVCache,
    budgets,
    kept_keys,
    key_scores,
    window,
)
from mvar_models.networks.selectivity import drafters_of, selectivity, selectivity_index
from mvar_models.sampling.sampler import start_state
from mvar_models.sampling.settings import SamplingSettings, read_preset

from command_cases import mvar
from golden_weights import Case, assert_close_to_largest, case_names, normal
from tiny_models import tiny_mvar, tiny_sample, tiny_vqvae

SIDES = (1, 3, 4, 6, 7)  # 62 tokens before the last scale
INFINITY = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
# Scale from 1 -> budget of drafters and refiners, of the two files of the released code.
RELEASED = {
    (32, 2): {9: (920, 632), 10: (1490, 594), 11: (2510, 526), 12: (4100, 420)},
    (32, 1): {13: (6385, 465)},
    (40, 3): {9: (909, 629), 10: (1464, 584), 11: (2463, 503), 12: (4054, 374), 13: (6200, 200)},
}


def cuts():
    """Return every cut of the golden cases: the file and the tensors' name."""
    for name in case_names("scalekv"):
        for key in sorted(Case(name).tensors):
            if key.endswith(".cache"):
                yield pytest.param(
                    name, key.removesuffix(".cache"), id=f"{name}-{key.removesuffix('.cache')}"
                )


def drawn(case, kind, layer):
    c = case.config
    shape = c["batch"], c["heads"], sum(side * side for side in c["patch_nums"]), c["head_dim"]
    return torch.from_numpy(normal(f"scalekv.{kind}.{c['seed']}.{layer}", shape)).transpose(1, 2)


@pytest.mark.parametrize(("name", "cut"), [*cuts()])
def test_a_released_cut_keeps_what_it_must_and_nothing_that_it_may_not(name, cut):
    case = Case(name)
    layer, scale = map(int, re.fullmatch(r"maxpool\.layer(\d+)\.after(\d+)", cut).groups())
    side = case.config["patch_nums"][scale]
    stop = sum(each * each for each in case.config["patch_nums"][: scale + 1])
    held = case.tensors[f"{cut}.cache"].long()
    query = drawn(case, "query", layer)[:, stop - side * side : stop]
    key = drawn(case, "key", layer).gather(
        1, held.transpose(1, 2)[..., None].expand(-1, -1, -1, query.shape[-1])
    )
    own = window(side, held.shape[-1], "released")
    assert torch.equal(held[0, 0, own], case.tensors[f"window.after{scale}"].long())
    asking = query[:, own - (held.shape[-1] - side * side)]
    scores = key_scores(asking, key, own, "released", query.shape[-1] ** -0.5)
    budget = case.figures["budgets"][str(scale + 2)][layer]
    kept = torch.zeros(held.shape, dtype=torch.bool).scatter(-1, kept_keys(scores, own, budget), True)
    must, may = (case.tensors[f"{cut}.{each}"].bool() for each in ("must", "may"))
    assert (kept.sum(-1) == budget).all()
    assert (kept >= must).all(), f"{(must & ~kept).sum()} keys of {must.sum()} are missing"
    assert (kept <= may).all(), f"{(kept & ~may).sum()} keys should have gone"


@pytest.mark.parametrize("name", case_names("scalekv"))
def test_budgets_of_a_golden_case(name):
    case = Case(name)
    c = case.config
    pairs = [(layer, scale) for layer in c["drafters"] for scale in range(len(c["patch_nums"]))]
    table = budgets(c["patch_nums"], c["layers"], c["base_capacity"], pairs, c["floor"])
    for scale, row in case.figures["budgets"].items():
        assert table[int(scale) - 1] == row


@pytest.mark.parametrize("name", case_names("scalekv"))
def test_the_paper_s_scores_and_index_agree_with_another_reading(name):
    case = Case(name)
    c = case.config
    ends = torch.tensor([side * side for side in c["patch_nums"]]).cumsum(0).tolist()
    scale = next(index for index, end in enumerate(ends) if end > c["base_capacity"])
    side, found = c["patch_nums"][scale], []
    for layer in range(c["layers"]):
        query, key = (drawn(case, kind, layer) for kind in ("query", "key"))
        own = window(side, ends[scale], "released")
        scores = key_scores(
            query[:, own], key[:, : ends[scale]], own, "attention", c["head_dim"] ** -0.5
        ).index_fill(-1, own, 0)
        expected = case.tensors[f"paper.scores.layer{layer}"]
        expected = expected.masked_fill(expected.isinf(), 0)
        assert_close_to_largest(scores, expected, 2e-5, f"scores of layer {layer}")
        factor = c["sharpness"][layer] * c["head_dim"] ** -0.5
        found.append(
            torch.stack(
                [
                    selectivity(query[:, start:stop], key[:, :stop], c["top"], factor).prod()
                    for start, stop in pairwise(ends)
                ]
            )
        )
    index = torch.stack(found)
    assert_close_to_largest(index, case.tensors["paper.asi"], 2e-5, "index")
    expected = [tuple(pair) for pair in case.figures["paper_drafters_layer_scale"]]
    assert set(drafters_of(index, c["num_drafters"])) == set(expected)


@pytest.mark.parametrize(("depth", "count"), RELEASED)
def test_one_rule_gives_all_budgets_that_were_released(depth, count):
    # The 2B model has two drafters, of which one goes on at the last scale.
    pairs = [(layer, scale) for layer in range(count) for scale in range(13)]
    if depth == 32:
        pairs = [(layer, scale) for layer in (0, 23) for scale in range(8, 12)] + [(0, 12)]
    table = budgets(INFINITY, depth, 650, pairs)
    for scale, (drafter, refiner) in RELEASED[depth, count].items():
        row = table[scale - 1]
        assert sorted(row, reverse=True) == [drafter] * count + [refiner] * (depth - count)
        assert sum(row) == 650 * depth


def test_windows_lie_at_the_centres_of_patches():
    for side in (4, 5, 6, 10, 13, 18, 20):
        rows = (window(side, side * side) // side).unique()
        assert torch.equal(rows, side - 1 - rows.flip(0)) or side % 4, side
        # No centre is more than half a token from a patch's.
        centres = (2 * torch.arange(4) + 1) * side / 8 - 0.5
        assert ((rows - centres).abs() <= 0.5).all(), side
    assert (window(20, 400, "released") // 20).unique().tolist() == [2, 7, 12, 17]
    assert window(3, 40).tolist() == list(range(24, 40))


def model_of(cosine=True, depth=3):
    torch.manual_seed(0)
    config = VARConfig(
        depth=depth, width=24, num_heads=2, num_classes=3, vocab_size=24, z_channels=4, sides=SIDES,
        cosine_attention=cosine, cache_drafters=((1, 3), (0, 4)),
    )  # fmt: skip
    model = VAR(config).eval()
    with torch.no_grad():
        model.class_embedding.weight.normal_()
        for block in model.blocks:
            block.attention.qkv.weight.normal_(std=0.5)
            block.modulation.weight.normal_(std=0.1)
    return model


def inputs_of(model, rows):
    torch.manual_seed(1)
    return [torch.randn(rows, side * side if scale else 0, 4) for scale, side in enumerate(SIDES)]


@torch.no_grad()
def steps(model, state, inputs, start=0):
    return [model.step(state, each, scale) for scale, each in enumerate(inputs[start:], start)]


def settings(share, rule="attention", drafters=()):
    return SamplingSettings(0.0, 0, 0.0, cache_budget=share, cache_rule=rule, cache_drafters=drafters)


def begun(model, labels, *given):
    return start_state(model, labels, settings(*given), guided=False)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("rule", CACHE_RULES)
def test_a_budget_of_all_tokens_changes_no_bit(rule, cosine):
    model, labels = model_of(cosine), torch.tensor([0, 2])
    inputs = inputs_of(model, 2)
    plain = steps(model, model.new_state(labels), inputs)
    full = begun(model, labels, 0.999, rule)
    assert type(full.cache) is ScaleKVCache
    for ours, theirs in zip(steps(model, full, inputs), plain):
        assert torch.equal(ours, theirs)
    cut = steps(model, begun(model, labels, 0.4, rule), inputs)
    assert not torch.equal(cut[-1], plain[-1])


@pytest.mark.parametrize("rule", CACHE_RULES)
@pytest.mark.parametrize("drafters", [(), ((0, 3), (1, 4), (2, 4))])
def test_keys_kept_are_some_that_were_there_and_as_many_as_the_budget_says(rule, drafters):
    model, labels = model_of(), torch.tensor([0, 1])
    state, whole = begun(model, labels, 0.5, rule, drafters), model.new_state(labels)
    with torch.no_grad():
        for scale, each in enumerate(inputs_of(model, 2)):
            model.step(state, each, scale)
            model.step(whole, each, scale)
            if scale + 1 == len(SIDES):
                break
            tokens = sum(side * side for side in SIDES[: scale + 1])
            for layer, (key, value) in state.cache.entries.items():
                wanted = min(tokens, state.cache.budgets[scale + 1][layer])
                assert key.shape == value.shape == (2, wanted, 2, 12)
            # The first layer's inputs do not depend on what was kept before.
            keys, all_keys = state.cache.entries[0][0], whole.cache.entries[0][0]
            same = (keys[:, :, None] == all_keys[:, None]).all(-1)
            assert (same.sum(2) == 1).all(), "each kept key is one of those there were, once"
            assert (same.int().argmax(2).diff(dim=1) > 0).all(), "in their order"
    assert not state.cache.entries, "nobody reads the last scale's"


@pytest.mark.parametrize("cosine", [True, False])
def test_it_keeps_the_keys_that_the_newest_map_looks_at(cosine):
    """Compare with attention by hand, for one layer, one row and one head."""
    config = VARConfig(depth=1, width=8, num_heads=1, sides=SIDES, cosine_attention=cosine)
    cache, factor = ScaleKVCache(config, 0.5), torch.tensor([5.0]) if cosine else None
    torch.manual_seed(2)
    maps = [torch.randn(2, 1, side * side, 1, 8) * 3 for side in SIDES[:4]]
    for query, key in maps:
        cache.extend(0, key, key, query, factor)
    keys, mean = torch.cat([key for _, key in maps], dim=1)[0, :, 0], 31
    chosen = [row * 6 + column for row in (0, 2, 3, 5) for column in (0, 2, 3, 5)]
    asking, asked = maps[3][0][0, chosen, 0], keys
    if cosine:
        asking, asked = (each / each.norm(dim=1, keepdim=True) for each in (asking, asked))
    seen = torch.softmax(asking @ asked.T * (5 if cosine else config.attention_scale), 1).sum(0)
    pooled = torch.stack([seen[max(i - 2, 0) : i + 3].sum() for i in range(62)])
    own = [26 + each for each in chosen]
    others = [i for i in pooled.argsort(descending=True).tolist() if i not in own][: mean - 16]
    assert torch.equal(cache.entries[0][0][0, :, 0], keys[sorted(own + others)])


@pytest.mark.parametrize("rule", CACHE_RULES)
def test_a_row_depends_on_no_other(rule):
    model, labels = model_of(), torch.tensor([2, 0, 1])
    inputs = inputs_of(model, 3)
    together = steps(model, begun(model, labels, 0.4, rule), inputs)[-1]
    for row in range(3):
        own = [each[row : row + 1] for each in inputs]
        alone = steps(model, begun(model, labels[row : row + 1], 0.4, rule), own)[-1]
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", CACHE_RULES)
def test_a_fork_and_its_origin_go_their_own_ways(rule):
    model, labels = model_of(), torch.tensor([2, 0])
    inputs = inputs_of(model, 2)
    straight = steps(model, begun(model, labels, 0.4, rule), inputs)[4]
    state = begun(model, labels, 0.4, rule)
    with torch.no_grad():
        for scale in range(3):
            model.step(state, inputs[scale], scale)
        twin = state.fork()
        other = [torch.randn_like(each) for each in inputs]
        steps(model, twin, other, 3)
        assert torch.equal(steps(model, state, inputs, 3)[-1], straight)


def test_the_cache_of_digits_is_as_large_as_its_budget():
    pipeline = VARPipeline.from_pretrained("var-digits")
    model, labels = pipeline.model, torch.arange(4)

    def most(share):
        state, sizes = begun(model, labels, share), []
        with torch.no_grad():
            for scale, side in enumerate(model.config.sides[:-1]):
                model.step(state, torch.zeros(4, side * side if scale else 0, model.config.z_channels), scale)
                sizes.append(sum(key.shape[1] for key, _ in state.cache.entries.values()))
        assert state.cache.num_bytes() == 4 * sizes[-1] * 2 * model.config.width * 4
        return max(sizes)

    assert most(0.999) == 4 * 66 and most(0.5) == 4 * 33


def test_guidance_cuts_both_halves_and_given_codes_stay():
    pipeline = VARPipeline.from_pretrained("var-digits")
    kept = {"seed": 3, "output_type": "np", "cache_budget": 0.5, "guidance_scale": 4.0}
    one, two = (pipeline(labels, **kept) for labels in ([3, 3], [3]))
    assert (one.images[0] == two.images[0]).all()
    plain = pipeline([3], seed=3, output_type="np", guidance_scale=4.0)
    assert (plain.images != two.images).any()
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, :16] = 255
    edited = pipeline.inpaint(plain.images, mask, labels=[5], seed=1, output_type="np", cache_budget=0.5)
    assert (edited.images[0] != plain.images[0])[:, :16].any()


def test_the_index_of_all_keys_is_what_the_own_map_leaves_to_them():
    model, labels = model_of(), torch.tensor([0, 2])
    shape = {"channels": 32, "channel_multipliers": (1, 1), "blocks_per_level": 1}
    quantizer = VQVAE(VQVAEConfig(24, 4, sides=SIDES, **shape)).quantizer
    indices = torch.randint(24, (2, model.config.length))
    few, every = (selectivity_index(model, quantizer, labels, indices, top) for top in (3, 10**6))
    assert few.shape == (3, 4) and (every <= 0.25).all(), "p (1 - p), p the weight of the own map"
    torch.testing.assert_close(few[:, 0], every[:, 0])  # one key before scale 1
    assert (few[:, 1:] < every[:, 1:]).all()
    twice = selectivity_index(model, quantizer, labels.repeat(2), indices.repeat(2, 1), 3)
    torch.testing.assert_close(twice, few)
    with pytest.raises(ValueError, match="MVAR has no KV cache"):
        selectivity_index(tiny_mvar(), tiny_vqvae().quantizer, labels, torch.zeros(2, 21, dtype=torch.int64))


@pytest.mark.parametrize("of", [("--labels", "3,seven"), ("--data", "digits")])
def test_mvar_calibrate_cache_writes_a_preset_that_samples_and_records_hold(of, tmp_path):
    preset, count = tmp_path / "cache.json", ("--n", 2, "--drafters", 6)
    done = mvar("calibrate-cache --model var-digits", *of, *count, "-o", preset)
    assert done.exit_code == 0, done.output
    pairs = read_preset(preset).cache_drafters
    assert len(set(pairs)) == 6 and all(
        f"layer {layer} at scale {scale}" in done.output for layer, scale in pairs
    )
    one = ("--labels", 3, "--n", 1, "--preset", preset, "--cache-budget", 0.5)
    assert mvar("sample --model var-digits", *one, "-o", tmp_path / "out").exit_code == 0
    record = tmp_path / "out" / "samples.json"
    held = json.loads(record.read_text())["settings"]
    assert (held["cache_budget"], held["cache_drafters"]) == (0.5, [list(pair) for pair in pairs])
    again = mvar("sample --again", record, "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    first, second = (next((tmp_path / each).glob("*.png")).read_bytes() for each in ("out", "again"))
    assert first == second
    refused = mvar("sample --model mvar-digits --cache-budget 0.5", "--n", 1, "-o", tmp_path / "no")
    assert refused.exit_code == 1 and "MVAR has no KV cache" in refused.output.splitlines()[-1]


def test_what_cannot_be_cut_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"cache_budget must keep at least 16 keys per layer.*0.1: 6 of 62"):
        begun(model_of(), torch.tensor([0]), 0.1)
    with pytest.raises(ValueError, match=r"cache_budget is for models.*MVAR has no KV cache"):
        tiny_sample(tiny_mvar(), [1], [0], cache_budget=0.5)
    recent = tiny_mvar().with_previous_scales(1)
    with pytest.raises(ValueError, match=r"MVAR keeps windows of recent scales"):
        tiny_sample(recent, [1], [0], cache_budget=0.5)
    with pytest.raises(ValueError, match=r"cache_rule must be one of attention.*got 'newest'"):
        settings(0.5, "newest")
    with pytest.raises(ValueError, match=r"cache_budget must be a number from 0 to 1, got 1\.5"):
        settings(1.5)
    with pytest.raises(ValueError, match=r"cache_drafters must be pairs of a layer below 3.*got \(3, 1\)"):
        begun(model_of(), torch.tensor([0]), 0.5, "attention", ((3, 1),))
