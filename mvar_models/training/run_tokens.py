"""The codes that a transformer's run trains on: of a folder of codes, or encoded into the run folder."""

from __future__ import annotations

import logging

from mvar_models.data.open import DIGITS
from mvar_models.data.source import ImageSource
from mvar_models.distributed import Processes
from mvar_models.evaluation.reconstruction import check_reconstruction
from mvar_models.files import SettingsMismatch
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.identity import network_identity
from mvar_models.tokens.encode import tokenize_split
from mvar_models.tokens.folder import INDEX, TokenFolder
from mvar_models.tokens.token_set import TokenSet
from mvar_models.tokens.writer import TokenWriter
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import ScorerSettings, TransformerSettings

logger = logging.getLogger(__name__)

# Of the training images and of the held-out ones.
TokenSets = tuple[TokenSet, TokenSet]


def open_tokens(
    settings: TransformerSettings | ScorerSettings,
    run: RunFolder,
    processes: Processes,
    vqvae: VQVAE,
    data: ImageSource | TokenFolder,
) -> TokenSets:
    """Return the codes of the training and of the held-out images, which are encoded if need be.

    Raises:
        ValueError: the codes are another VQVAE's, the data has changed since the run began, or it is not that
            of another process.
    """
    if not processes.alone:
        facts = {"the fingerprint of the data": data.fingerprint, "the VQVAE": network_identity(vqvae)}
        processes.require_same(facts)
    if isinstance(data, TokenFolder):
        return processes.first_then_others(lambda: data.token_sets(vqvae, settings.copies))
    if settings.data == DIGITS:  # their codes take seconds, so they stay in memory
        return processes.first_then_others(
            lambda: tokenize_split(vqvae, data, settings.copies, settings.seed)
        )
    return _encode(settings, run, processes, vqvae, data)


def _encode(
    settings: TransformerSettings | ScorerSettings,
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
            shown = folder / "reconstruction.png"
            check = check_reconstruction(vqvae, source, shown)
            if not check.fits:
                logger.warning(
                    "%s reconstructs these images with only %.1f dB PSNR; look at %s",
                    settings.vqvae,
                    check.psnr,
                    shown,
                )
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
