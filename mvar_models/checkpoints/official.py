"""Convert names and layouts of the released state dicts to ours and back, without loss.

`official_name` says what an entry of ours is called there; both directions are read off it, so they agree by
construction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mvar_models.config import RELEASED_SIDES, Config, MarkovVARConfig, TransformerConfig, VQVAEConfig
from mvar_models.registry import architecture, generator_titles, marked

C = TypeVar("C", bound=Config)

# Buffers of the released transformers that hold nothing learned. `attn_bias_for_masking` may even have the
# wrong values in fine-tuned files, so none of them is read, and export recomputes all of them.
_REBUILT = re.compile(r"lvl_1L|attn_bias_for_masking|(blocks\.\d+\.attn|context_pool\.ca)\.zero_k_bias")

_VQVAE_RULES = (
    (r"^quantizer\.codebook\.", "quantize.embedding."),
    (r"^quantizer\.residual_convolutions\.(\d+)\.", r"quantize.quant_resi.qresi_ls.\1."),
    (r"^quantizer\.code_usage$", "quantize.ema_vocab_hit_SV"),
    (r"^(encoder|decoder)\.middle\.0\.", r"\1.mid.block_1."),
    (r"^(encoder|decoder)\.middle\.1\.", r"\1.mid.attn_1."),
    (r"^(encoder|decoder)\.middle\.2\.", r"\1.mid.block_2."),
    (r"^encoder\.levels\.(\d+)\.", r"encoder.down.\1."),
    (r"^encoder\.down\.(\d+)\.resize\.", r"encoder.down.\1.downsample.conv."),
    (r"^decoder\.up\.(\d+)\.resize\.", r"decoder.up.\1.upsample.conv."),
    (r"\.blocks\.(\d+)\.", r".block.\1."),
    (r"\.attentions\.(\d+)\.", r".attn.\1."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"(attn[._]\d+)\.proj\.", r"\1.proj_out."),
)
_TRANSFORMER_RULES = (
    (r"^token_embedding\.", "word_embed."),
    (r"^class_embedding\.", "class_emb."),
    (r"^start_position$", "pos_start"),
    (r"^positions$", "pos_1LC"),
    (r"^scale_embedding\.", "lvl_embed."),
    (r"^shared_modulation\.", "shared_ada_lin.1."),
    (r"^head_modulation\.", "head_nm.ada_lin.1."),
    (r"\.modulation\.", ".ada_lin.1."),
    (r"\.modulation_offset$", ".ada_gss"),
    (r"\.attention\.log_scale$", ".attn.scale_mul_1H11"),
    (r"\.attention\.qkv\.", ".attn.mat_qkv."),
    (r"\.attention\.", ".attn."),
    (r"\.mlp\.", ".ffn."),
)
_MARKOV_VAR_RULES = (
    (r"^history_pool\.query$", "context_pool.ca.mat_q"),
    (r"^history_pool\.key_value\.", "context_pool.ca.mat_kv."),
    (r"^history_pool\.", "context_pool.ca."),
    (r"^fusion\.", "head_context."),
    (r"^input_norm\.", "norm_x."),
    (r"^condition_norm\.", "norm_cond."),
    (r"^head_norm\.", "head_nm.ln_wo_grad."),
    (r"^(blocks\.\d+)\.norm\.", r"\1.ln_wo_grad."),
    (r"\.attention\.qkv\.", ".attn.qkv_proj."),
    (r"\.mlp\.(gate|up|down)\.", r".ffn.\1_proj."),
    *_TRANSFORMER_RULES,
    (r"^lvl_embed\.", "lvl_embed.mlp."),
)
# Rules by the kind of model; transformers without an entry have VAR's.
_RULES = {"vqvae": _VQVAE_RULES, "markov-var": _MARKOV_VAR_RULES}
# Axes of size 1 that released tensors have in front.
_LEADING_AXES = {"pos_start": 1, "pos_1LC": 1, "mat_q": 1, "ada_gss": 2}


def official_name(name: str, config: Config) -> str:
    """Return what the released programs call our entry `name`."""
    if isinstance(config, VQVAEConfig):
        # The released decoder numbers its levels finest first but runs them the other way round.
        deepest = len(config.channel_multipliers) - 1
        name = re.sub(r"^decoder\.levels\.(\d+)\.", lambda m: f"decoder.up.{deepest - int(m[1])}.", name)
    for pattern, replacement in _RULES.get(config.model_type, _TRANSFORMER_RULES):
        name = re.sub(pattern, replacement, name)
    return name


def from_official(state: Mapping[str, Tensor], model: nn.Module, config: Config) -> dict[str, Tensor]:
    """Return a released state dict under our names and shapes.

    Entries that match nothing keep their names, for the strict check to report.
    """
    ours = {official_name(name, config): (name, value.shape) for name, value in model.state_dict().items()}
    renamed = {}
    for name, value in state.items():
        if _REBUILT.fullmatch(name):
            continue
        target, shape = ours.get(name, (name, value.shape))
        renamed[target] = value.reshape(shape) if value.numel() == shape.numel() else value
    return renamed


def to_official(model: nn.Module, config: Config) -> dict[str, Tensor]:
    """Return our weights under the released names and shapes, with the buffers of released files."""
    state = {}
    for name, value in model.state_dict().items():
        official = official_name(name, config)
        state[official] = value.reshape(_official_shape(official, value))
    if isinstance(config, TransformerConfig):
        state.update(_rebuilt_buffers(config, next(iter(state.values())).device))
    return state


def _official_shape(name: str, value: Tensor) -> tuple[int, ...]:
    last = name.rpartition(".")[2]
    if last == "scale_mul_1H11":
        return 1, value.shape[0], 1, 1
    return (1,) * _LEADING_AXES.get(last, 0) + tuple(value.shape)


def _rebuilt_buffers(config: TransformerConfig, device: torch.device) -> dict[str, Tensor]:
    allowed = config.released_mask()
    bias = torch.zeros(allowed.shape, dtype=torch.float32, device="cpu").masked_fill_(~allowed, float("-inf"))
    buffers = {"lvl_1L": config.scale_of_token()[None], "attn_bias_for_masking": bias[None, None]}
    layers = [f"blocks.{index}.attn" for index in range(config.depth)]
    layers += ["context_pool.ca"] if isinstance(config, MarkovVARConfig) else []
    for layer in layers:
        buffers[f"{layer}.zero_k_bias"] = torch.zeros(config.width, dtype=torch.float32, device="cpu")
    return {name: value.to(device) for name, value in buffers.items()}


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Return whether the entries have the released names."""
    return "class_emb.weight" in state or "quantize.embedding.weight" in state


def infer_config(state: Mapping[str, Tensor], config_class: type[C]) -> C:
    """Return the configuration that a released state dict belongs to, read off its shapes.

    Raises:
        ValueError: the tensors are those of another kind of model.
    """
    if issubclass(config_class, VQVAEConfig):
        if "quantize.embedding.weight" not in state:
            raise ValueError(f"this is a transformer ({generator_titles()}), not a VQVAE")
        return config_class(**_infer_vqvae(state))
    if "class_emb.weight" not in state:
        raise ValueError("this is a VQVAE, not a transformer")
    assert issubclass(config_class, TransformerConfig)
    actual, asked = marked(state), architecture(config_class.model_type)
    if actual is not None and actual is not asked:
        raise ValueError(f"this is a {actual.title}, not a {asked.title}")
    if actual is None and asked.released_mark:
        raise ValueError(f"this is no {asked.title}, which has an entry {asked.released_mark}")
    settings = _infer_markov_var(state) if config_class is MarkovVARConfig else _infer_transformer(state)
    return config_class(**settings, **config_class.settings_for(settings["sides"]))


def _infer_vqvae(state: Mapping[str, Tensor]) -> dict[str, Any]:
    vocab_size, z_channels = state["quantize.embedding.weight"].shape
    channels = state["encoder.conv_in.weight"].shape[0]
    widths = [
        state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0]
        for level in range(_count(state, r"encoder\.down\.(\d+)\."))
    ]
    return dict(
        vocab_size=vocab_size,
        z_channels=z_channels,
        channels=channels,
        channel_multipliers=[width // channels for width in widths],
        blocks_per_level=_count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        sides=_sides_of_count(state["quantize.ema_vocab_hit_SV"].shape[0]),
        num_residual_convolutions=_count(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.bias"),
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many parts are numbered in the names that match."""
    return 1 + max(int(match[1]) for match in (re.match(pattern, name) for name in state) if match)


def _infer_transformer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    settings = _infer_shared(state, state["pos_1LC"].shape[1])
    settings["mlp_ratio"] = state["blocks.0.ffn.fc1.weight"].shape[0] / settings["width"]
    settings["shared_adaln"] = "shared_ada_lin.1.weight" in state
    return settings


def _infer_markov_var(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "lvl_1L" not in state:
        raise ValueError("lvl_1L, which tells the scales of a Markov-VAR, is missing")
    settings = _infer_shared(state, state["lvl_1L"].numel())
    hidden = state["blocks.0.ffn.gate_proj.weight"].shape[0]
    if hidden != MarkovVARConfig(**settings).hidden_width:
        settings["mlp_ratio"] = hidden / settings["width"]
    return settings


def _infer_shared(state: Mapping[str, Tensor], length: int) -> dict[str, Any]:
    """Return the settings that all released transformers show alike; `length` is the number of tokens."""
    classes, width = state["class_emb.weight"].shape
    cosine = "blocks.0.attn.scale_mul_1H11" in state
    return dict(
        depth=_count(state, r"blocks\.(\d+)\."),
        width=width,
        num_heads=state["blocks.0.attn.scale_mul_1H11"].shape[1] if cosine else max(width // 64, 1),
        num_classes=classes - 1,
        vocab_size=state["head.weight"].shape[0],
        z_channels=state["word_embed.weight"].shape[1],
        sides=_sides_of_tokens(state, length),
        cosine_attention=cosine,
    )


def _sides_of_tokens(state: Mapping[str, Tensor], length: int) -> tuple[int, ...]:
    # The buffer with the scale of each token shows any pyramid; without it only released ones can be told.
    levels = state.get("lvl_1L")
    if levels is not None and not levels.is_meta and levels.numel() == length:
        counts = torch.bincount(levels.flatten().long()).tolist()
        sides = tuple(math.isqrt(count) for count in counts)
        if all(side * side == count for side, count in zip(sides, counts)):
            return sides
    for sides in RELEASED_SIDES.values():
        if sum(side * side for side in sides) == length:
            return sides
    raise ValueError(
        f"{length} tokens fit none of the released resolutions (256, 512, 1024 px), "
        "and lvl_1L, which would tell the scales, is missing"
    )


def _sides_of_count(count: int) -> tuple[int, ...]:
    # 256 and 512 px both have ten scales, and the released VQVAE file serves either.
    for sides in RELEASED_SIDES.values():
        if len(sides) == count:
            return sides
    raise ValueError(f"{count} scales belong to none of the released VQVAEs")
