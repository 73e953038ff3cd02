"""Frechet distance between two sets of feature vectors (Heusel et al., arXiv 1706.08500).

The root of a product of covariances is not taken as such: SciPy's `sqrtm` of that matrix, which is not
symmetric, gives complex numbers whenever a covariance has less than full rank, and the released programs
then add to the diagonal. tr (S1 S2)^1/2 is the sum of the singular values of any F1 F2^T with S = F^T F, so
it is real by construction, and SciPy is not needed.
"""

from __future__ import annotations

import logging

import numpy as np

from mvar_models.evaluation.moments import Moments

logger = logging.getLogger(__name__)

# Relative to the largest eigenvalue: what rounding to float32 leaves behind, and what is no covariance.
_ROUNDING, _WRONG = 1e-6, 1e-3


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the squared Frechet distance between Gaussians that are fitted to both sets.

    It is |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) for means m and covariances S.

    Args:
        first: (n, d) features, at least two rows.
        second: (m, d) features, at least two rows.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if max(len(first), len(second)) >= first.shape[1]:
        return frechet_between(Moments.of(first), Moments.of(second))
    # With few vectors the n x m matrix of products is smaller than the covariances, and squares nothing.
    mean1, mean2 = first.mean(axis=0), second.mean(axis=0)
    factor1 = (first - mean1) / np.sqrt(len(first) - 1)
    factor2 = (second - mean2) / np.sqrt(len(second) - 1)
    cross = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    return _at_least_zero(((mean1 - mean2) ** 2).sum() + (factor1**2).sum() + (factor2**2).sum() - 2 * cross)


def frechet_between(first: Moments, second: Moments, *, name: str = "features") -> float:
    """Compute the squared Frechet distance between two Gaussians.

    Args:
        first: Moments of one set.
        second: Moments of the other, of the same dimension.
        name: What the vectors are, for warnings.

    Raises:
        ValueError: the dimensions differ, or a covariance has clearly negative eigenvalues.
    """
    for moments, what in ((first, "first"), (second, "second")):
        warning = rank_warning(moments, what)
        if warning is not None:
            logger.warning("%s", warning)
    return FrechetReference(second, name=name).distance(first)


class FrechetReference:
    """One of the two Gaussians, whose root is computed once and compared with any number of others.

    Args:
        moments: Of the reference.
        name: What the vectors are, for warnings.
    """

    def __init__(self, moments: Moments, *, name: str = "features") -> None:
        self._moments = moments
        self._name = name
        covariance = moments.covariance
        values, vectors = np.linalg.eigh(covariance)
        _check_eigenvalues(values, f"the reference's {name}")
        self._trace = float(np.trace(covariance))
        self._root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def distance(self, moments: Moments) -> float:
        """Compute the squared distance to the Gaussian of other moments."""
        mine, name = self._moments, self._name
        if moments.dimension != mine.dimension:
            raise ValueError(
                f"the {name} of the reference have {mine.dimension} numbers, those of the drawn images have "
                f"{moments.dimension}: they are of different networks or image sizes"
            )
        covariance = moments.covariance
        # S1 S2 and the symmetric S1^1/2 S2 S1^1/2 have the same eigenvalues; those of the latter stay real.
        values = np.linalg.eigvalsh(self._root @ covariance @ self._root)
        _check_eigenvalues(values, f"the drawn images' {name}")
        cross = np.sqrt(np.maximum(values, 0)).sum()
        apart = ((moments.mean - mine.mean) ** 2).sum()
        return _at_least_zero(apart + np.trace(covariance) + self._trace - 2 * cross)


def rank_warning(moments: Moments, what: str) -> str | None:
    """Return why a covariance has less than full rank and how many images would do, or None.

    Args:
        moments: Of the images.
        what: The images, as in "drawn".
    """
    count, dimension = moments.count, moments.dimension
    if count is None or count > dimension:
        return None
    return (
        f"{count:,} {what} images for {dimension:,} numbers: the covariance has rank {count - 1:,} at "
        f"most, and the distance is too large; it takes {dimension + 1:,} images for full rank, "
        "and published figures use 50,000"
    )


def _at_least_zero(distance: float) -> float:
    # In this order NaN stays NaN.
    return max(float(distance), 0.0)


def _check_eigenvalues(values: np.ndarray, what: str) -> None:
    """Raise for a matrix that is no covariance; warn where rounding was coarse."""
    if not np.isfinite(values).all():
        raise ValueError(f"the covariance of {what} has numbers that are not finite")
    least, largest = float(values.min()), float(max(values.max(), 0))
    if least < -_WRONG * largest or largest == 0 > least:
        raise ValueError(f"{what}: no covariance, its eigenvalues go from {least:.3g} to {largest:.3g}")
    if least < -_ROUNDING * largest:
        logger.warning("%s: the least eigenvalue is %.3g of %.3g; taken as 0", what, least, largest)
