"""The table of model architectures, named by strings so that reading it imports no network.

A new variant is one file under `networks/` with its config class, and one row here. Code that would ask
"is this a VAR?" asks the row, the config class or the network class instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Container
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """One kind of model: where its classes are, and how the released programs store it.

    Attributes:
        name: `model_type` in config.json, and the value of `--arch`.
        title: How messages and model cards write it.
        config: Config class, as "module:name".
        network: Network class, as "module:name".
        pipeline: Pipeline class, as "module:name"; None for one that generates no images.
        paper: arXiv id.
        description: One sentence for model cards.
        released_entry: Entry of a released training program's checkpoint that holds the weights, if any.
        released_wrapped: Whether the published file has that entry too; otherwise it is the bare state dict.
        released_outer: Entry that the published file has around `released_entry`, if any.
        released_mark: Tensor that only this architecture's released state dict has, for those whose programs
            share an entry's name with another; "" if there is none.
        starts_from: Names of other architectures with the same parameters, whose checkpoints the network
            class can start from (`from_checkpoint`).
    """

    name: str
    title: str
    config: str
    network: str
    pipeline: str | None
    paper: str
    description: str
    released_entry: str | None = None
    released_wrapped: bool = False
    released_outer: str = ""
    released_mark: str = ""
    starts_from: tuple[str, ...] = ()

    def config_class(self) -> type[Any]:
        """Import and return the `Config` subclass."""
        return resolve(self.config)

    def network_class(self) -> type[Any]:
        """Import and return the `PretrainedModel` subclass."""
        return resolve(self.network)

    def pipeline_class(self) -> type[Any]:
        """Import and return the `Pipeline` subclass.

        Raises:
            ValueError: the architecture has no pipeline.
        """
        if self.pipeline is None:
            raise ValueError(f"{self.title} has no pipeline")
        return resolve(self.pipeline)

    @property
    def is_generator(self) -> bool:
        """Whether it generates images, so that `mvar sample` and `mvar train --arch` take it."""
        return self.pipeline is not None


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(
            name="vqvae",
            title="VQVAE",
            config="mvar_models.config:VQVAEConfig",
            network="mvar_models.networks.vqvae:VQVAE",
            pipeline=None,
            paper="2404.02905",
            description="A multi-scale VQVAE: images to codes of a scale pyramid and back.",
            released_entry="vae_local",
        ),
        Architecture(
            name="var",
            title="VAR",
            config="mvar_models.config:VARConfig",
            network="mvar_models.networks.var:VAR",
            pipeline="mvar_models.pipeline:VARPipeline",
            paper="2404.02905",
            description="A class-conditional VAR: generates the codes of an image scale by scale.",
            released_entry="var_wo_ddp",
        ),
        Architecture(
            name="mvar",
            title="MVAR",
            config="mvar_models.config:MVARConfig",
            network="mvar_models.networks.mvar:MVAR",
            pipeline="mvar_models.pipeline:MVARPipeline",
            paper="2505.12742",
            description=(
                "A class-conditional MVAR: generates the codes of an image scale by scale, each from the "
                "preceding scale alone, without a KV cache."
            ),
            released_entry="mvar_wo_ddp",
            released_wrapped=True,
            starts_from=("var",),
        ),
        Architecture(
            name="markov-var",
            title="Markov-VAR",
            config="mvar_models.config:MarkovVARConfig",
            network="mvar_models.networks.markov_var:MarkovVAR",
            pipeline="mvar_models.pipeline:MarkovVARPipeline",
            paper="2511.23334",
            description=(
                "A class-conditional Markov-VAR: generates the codes of an image scale by scale, each from "
                "the preceding scale and a vector pooled from the last three, without a KV cache."
            ),
            released_entry="var_wo_ddp",
            released_wrapped=True,
            released_outer="trainer",
            released_mark="context_pool.ca.mat_q",
        ),
        Architecture(
            name="lsrs-scorer",
            title="scorer of LSRS",
            config="mvar_models.networks.scorer:ScorerConfig",
            network="mvar_models.networks.scorer:Scorer",
            pipeline=None,
            paper="2512.03796",
            description="Tells feature maps of sampled codes from those of real images, scale by scale.",
        ),
    )
}


def architecture(name: str) -> Architecture:
    """Return the row of that name.

    Raises:
        ValueError: no such architecture.
    """
    row = ARCHITECTURES.get(name)
    if row is None:
        raise ValueError(f"unknown architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    return row


def marked(names: Container[str]) -> Architecture | None:
    """Return the architecture whose `released_mark` is among the names of a released state dict.

    Released VARs and MVARs look alike and bear none.
    """
    return next(
        (row for row in ARCHITECTURES.values() if row.released_mark and row.released_mark in names), None
    )


def generator_names() -> list[str]:
    """Return the names of architectures that generate images, the choices of `--arch`."""
    return [row.name for row in ARCHITECTURES.values() if row.is_generator]


def generator_titles() -> str:
    """Return their titles for messages: "VAR or MVAR"."""
    *most, last = [row.title for row in ARCHITECTURES.values() if row.is_generator]
    return f"{', '.join(most)} or {last}" if most else last


def resolve(dotted: str) -> Any:
    """Import "module:name" and return the object.

    Every table of the package names its rows' code this way.
    """
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)
