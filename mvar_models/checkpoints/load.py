"""From an opened checkpoint to a configuration and a model's weights: strict, with errors of one line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from mvar_models.checkpoints import imagenet, official, zoo
from mvar_models.checkpoints.peek import Checkpoint
from mvar_models.config import CONFIG_NAME, Config, TransformerConfig
from mvar_models.registry import ARCHITECTURES, drawing_titles

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Config)


def load(checkpoint: Checkpoint, config_class: type[C]) -> tuple[C, dict[str, Tensor]]:
    """Return the configuration and the tensors, which keep the names that they have in the file.

    Raises:
        ValueError: the checkpoint is of another kind, or its file holds no model; the message says what it
            is.
    """
    source, kind = checkpoint.source, config_class.model_type
    if source.entry is not None and source.entry.model_type != kind:
        raise ValueError(f"{source.entry.name} is a {source.entry.model_type} model, expected {kind}")
    contents, where = checkpoint.contents(kind), checkpoint.weights
    if checkpoint.config_values is not None:
        config = config_class.from_dict(checkpoint.config_values, str(checkpoint.config_path))
        return config, contents.state
    if not official.is_official(contents.state):
        titles = ", ".join(row.title for row in ARCHITECTURES.values())
        raise ValueError(
            f"{where} has no {CONFIG_NAME} beside it, "
            f"and its tensors are not those of a released model ({titles})"
        )
    try:
        config = official.infer_config(contents.state, config_class)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if isinstance(config, TransformerConfig):
        if source.entry is not None and source.entry.depth not in (None, config.depth):
            logger.warning(
                "%s has depth %d, its name in the zoo says %d", where, config.depth, source.entry.depth
            )
        if contents.kind not in (None, kind):
            logger.warning("%s was written as %s and is read as %s", where, contents.kind, kind)
        if config.num_classes == imagenet.NUM_CLASSES:
            # Every released transformer was trained on ImageNet.
            config = config.replace(class_names=imagenet.class_names())
    entry = source.entry or zoo.of_file(where.name, kind)
    return config.replace(**(entry.preset if entry else {})), contents.state


def assign(
    model: nn.Module,
    config: Config,
    state: dict[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    where: str,
) -> None:
    """Give a model that was built on the meta device its weights, strictly.

    Args:
        model: The network; buffers that files do not store are left to its `reset_buffers`.
        config: Its configuration.
        state: Tensors under our names or the released ones.
        dtype: Type of the floating-point weights.
        device: Where to put them.
        where: The file, for error messages.

    Raises:
        ValueError: entries are missing, unexpected or of another shape.
    """
    if official.is_official(state):
        state = official.from_official(state, model, config)
    expected = model.state_dict()
    _check_names(type(model).__name__, config, expected, state, where)
    integers = [n for n, v in expected.items() if v.is_floating_point() and not state[n].is_floating_point()]
    if integers:
        kind = str(state[integers[0]].dtype).removeprefix("torch.")
        raise ValueError(f"{where}: {integers[0]} is of {kind}, expected floating-point weights")
    wrong = [name for name, value in expected.items() if value.shape != state[name].shape]
    if wrong:
        name = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(
            f"{where}: {name} is {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}{more}; "
            f"the file belongs to a model of another size"
        )
    placed = {
        name: value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)
        for name, value in state.items()
    }
    model.load_state_dict(placed, strict=True, assign=True)


def _check_names(
    title: str, config: Config, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str
) -> None:
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if not missing and not unexpected:
        return
    depth = f" of depth {config.depth}" if isinstance(config, TransformerConfig) else ""
    parts = [f"{len(missing)} entries missing ({', '.join(missing[:3])}, ...)"] if missing else []
    parts += [f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}, ...)"] if unexpected else []
    raise ValueError(
        f"{where} seems to be {_describe(state)}; you asked for a {title}{depth}: {'; '.join(parts)}"
    )


def _describe(state: Mapping[str, Tensor]) -> str:
    if "quantizer.codebook.weight" in state:
        return "a VQVAE"
    if "class_embedding.weight" in state:
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        return f"a {drawing_titles()} of depth {depth}"
    return "no model of this package"
