"""The codes that a transformer's run trains on: from a folder of codes, or made from images in the run
folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mvar_models.data.open import DIGITS, open_images
from mvar_models.data.source import ImageSource
from mvar_models.distributed import Processes
from mvar_models.evaluation.reconstruction import check_reconstruction
from mvar_models.files import SettingsMismatch
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.identity import network_identity
from mvar_models.tokens.encode import tokenize_split
from mvar_models.tokens.folder import INDEX, TokenFolder, is_token_folder
from mvar_models.tokens.token_set import TokenSet
from mvar_models.tokens.writer import TokenWriter
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import TransformerSettings

logger = logging.getLogger(__name__)

# Of the training images and of the held-out ones.
TokenSets = tuple[TokenSet, TokenSet]


def open_tokens(
    settings: TransformerSettings,
    run: RunFolder,
    processes: Processes,
    vqvae: VQVAE,
    tokens: TokenSets | None = None,
) -> tuple[TokenSets, tuple[str, ...]]:
    """Open a folder of codes, or encode images.

    Args:
        settings: The run's settings, whose `data` is opened.
        run: The run folder, which keeps the codes of images.
        processes: The processes of the run, which share the encoding.
        vqvae: The VQVAE that encodes.
        tokens: The codes, where they are at hand.

    Returns:
        The codes of the training and held-out images, and the names of the data's classes.

    Raises:
        ValueError: the codes are another VQVAE's, or the data has changed since the run began.
    """
    shared = {} if processes.alone else {"the VQVAE": network_identity(vqvae)}
    if is_token_folder(Path(settings.data)):
        with processes.raising_together():
            folder = TokenFolder(Path(settings.data))
        processes.require_same({"the fingerprint of the data": folder.fingerprint, **shared})
        if tokens is None:
            tokens = processes.first_then_others(lambda: folder.token_sets(vqvae, settings.copies))
        return tokens, tuple(folder.class_names)
    with processes.raising_together():
        source = open_images(settings.data, vqvae.config.resolution)
    processes.require_same({"the fingerprint of the data": source.fingerprint, **shared})
    if tokens is None:
        # The digits take seconds, so their codes stay in memory.
        if settings.data == DIGITS:
            tokens = processes.first_then_others(
                lambda: tokenize_split(vqvae, source, settings.copies, settings.seed)
            )
        else:
            tokens = _encode(settings, run, processes, vqvae, source)
    return tokens, tuple(source.class_names)


def _encode(
    settings: TransformerSettings,
    run: RunFolder,
    processes: Processes,
    vqvae: VQVAE,
    source: ImageSource,
) -> TokenSets:
    """Encode images into the run folder, where a resumed run finds the codes; processes share the work."""
    folder = run.path / "tokens"

    def begin() -> TokenWriter:
        names = settings.data, settings.vqvae
        try:
            writer = TokenWriter(
                vqvae, source, folder, names=names, num_variants=settings.copies, seed=settings.seed
            )
        except SettingsMismatch as error:
            raise ValueError(
                f"what {run.path} trains on has changed since it began ({', '.join(error.changed)}); "
                f"restore it to continue, or start a new run from {run.best}"
            ) from None
        if processes.first and not writer.finished:
            _check_vqvae(settings.vqvae, vqvae, source, folder)
        return writer

    writer = processes.first_then_others(begin)
    with processes.raising_together():
        writer.write(processes)
    # On a network disk, two processes that finish together may each miss the other's last shard, so that
    # neither writes the index.
    processes.run_on_rank0(writer.write)
    with processes.raising_together():
        made = TokenFolder(folder)
        sets = made.token_sets(vqvae)
    if made.skipped:
        logger.warning(
            "%d skipped, %d images used; all are listed in %s", len(made.skipped), len(made), folder / INDEX
        )
    return sets


def _check_vqvae(name: str, vqvae: VQVAE, source: ImageSource, folder: Path) -> None:
    """Warn if the VQVAE reconstructs the images badly."""
    shown = folder / "reconstruction.png"
    found = check_reconstruction(vqvae, source, shown)
    if not found.fits:
        logger.warning(
            "%s reconstructs these images with only %.1f dB PSNR; look at %s", name, found.psnr, shown
        )
