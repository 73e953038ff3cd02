"""Upload models to the Hub, each with a card that says what it is and how to run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from mvar_models.checkpoints.locate import hub_answers
from mvar_models.config import Config
from mvar_models.files import write_text
from mvar_models.records import reason_in_line
from mvar_models.registry import architecture

# Settings that a card lists, as far as the architecture has them.
_LISTED = (
    "depth",
    "width",
    "num_heads",
    "num_classes",
    "sides",
    "kernel_size",
    "dense_scales",
    "previous_scales",
    "guidance_scale",
    "guidance_schedule",
    "top_k",
    "top_p",
    "vocab_size",
    "origin",
)


@dataclass(frozen=True)
class CardFacts:
    """What a model card says, without the model.

    Attributes:
        class_name: Class in `mvar_models` whose `from_pretrained` loads the repository.
        config: Configuration of the network that gives the repository its name.
        parameters: Number of its parameters.
        generates: Whether calling the loaded object generates images.
    """

    class_name: str
    config: Config
    parameters: int
    generates: bool = False


def push_to_hub(
    save: Callable[[Path], object],
    facts: CardFacts,
    repository: str,
    *,
    license: str = "other",
    base_model: str | None = None,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
) -> str:
    """Upload a model, or a pipeline with its VQVAE; `from_pretrained(repository)` then loads it.

    Args:
        save: Writes the files to a folder: `save_pretrained`.
        facts: What the card says.
        repository: Hub id, "org/name".
        license: Licence of the weights, as the Hub writes it ("mit", "apache-2.0", ...).
        base_model: Hub id of the model that was fine-tuned.
        private: Whether to make the repository private, if it is new.
        token: As in `huggingface_hub`.
        revision: Branch to commit to.
        message: Commit message.

    Returns:
        The commit's address.

    Raises:
        PermissionError: the Hub refused, or there is no token; the message says why.
        OSError: the Hub cannot be reached, or the upload failed.
    """
    if not hub_answers():
        raise OSError(f"{repository} could not be uploaded: the Hub cannot be reached")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(folder)
        card = model_card(facts, repository, license=license, base_model=base_model)
        write_text(folder / "README.md", str(card))
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            return str(
                api.upload_folder(
                    repo_id=repository, folder_path=folder, commit_message=message, revision=revision
                )
            )
        except HfHubHTTPError as error:
            refusal = f"the Hub refused {repository}: {reason_in_line(error)}"
        except LocalTokenNotFoundError:
            refusal = f"{repository} needs an access token, and none is stored"
        # Errors of the connection, of the name and of the disk, of four libraries and their versions.
        except Exception as error:
            raise OSError(f"{repository} could not be uploaded: {reason_in_line(error)}") from error
        raise PermissionError(f"{refusal} (log in with `hf auth login`, or pass token=)")


def model_card(
    facts: CardFacts, repository: str, *, license: str = "other", base_model: str | None = None
) -> ModelCard:
    """Return the repository's card: metadata, what the model is, its settings, and usage that runs as it
    stands.

    Args:
        facts: What the card says.
        repository: Hub id, "org/name".
        license: Licence of the weights.
        base_model: Hub id of the model that was fine-tuned.
    """
    row = architecture(facts.config.model_type)
    # The Hub has no pipeline tag for class-conditional generation, and "unconditional" would be wrong.
    tags = [row.name, "visual-autoregressive", "image-generation"]
    tags += ["class-conditional-image-generation"] if row.is_generator else []
    data = ModelCardData(library_name="mvar", license=license, base_model=base_model, tags=tags)
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {repository}",
        "",
        f"{row.description} {facts.parameters:,} parameters. Paper: arXiv {row.paper}.",
        "",
        *_settings(facts.config),
        "",
        "```python",
        *_usage(facts, repository),
        "```",
        "",
    ]
    return ModelCard("\n".join(lines))


def _settings(config: Config) -> list[str]:
    names = [name for name in _LISTED if getattr(config, name, None) is not None]
    return ["| setting | value |", "|---|---|", *(f"| {name} | {getattr(config, name)} |" for name in names)]


def _usage(facts: CardFacts, repository: str) -> list[str]:
    load = f'{facts.class_name}.from_pretrained("{repository}")'
    lines = [f"from mvar_models import {facts.class_name}", ""]
    if facts.generates:
        return [*lines, f"images = {load}([0, 1], seed=0)", 'images[0].save("0.png")']
    return [*lines, f"model = {load}"]
