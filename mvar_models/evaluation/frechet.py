"""Frechet distance between two sets of feature vectors (Heusel et al., arXiv 1706.08500)."""

from __future__ import annotations

import numpy as np


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the squared Frechet distance between Gaussians that are fitted to both sets.

    It is |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) for means m and covariances S.

    Args:
        first: (n, d) features, at least two rows.
        second: (m, d) features, at least two rows.
    """
    mean1, mean2 = first.mean(axis=0), second.mean(axis=0)
    cov1, cov2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # S1 S2 and the symmetric S1^1/2 S2 S1^1/2 have the same eigenvalues; those of the latter stay real.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0)).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross)
