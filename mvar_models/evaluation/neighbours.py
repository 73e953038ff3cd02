"""Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

All four ask which images lie within the distance from another set's image to its k-th nearest neighbour;
one pass over all pairs answers them. An image at just that distance lies within, as in Kynkaanniemi's code;
which distances are equal, `distances` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mvar_models.evaluation.distances import blocks, centred, radii, upper

PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5


@dataclass(frozen=True)
class Neighbourhoods:
    """Which images of two sets lie in the other set's neighbourhoods.

    Attributes:
        inside: (n,) bool, drawn images within the neighbourhood of some reference image (k = 3).
        around: (n,) int64, in how many reference images' neighbourhoods (k = 5) each drawn image lies.
        reached: (m,) bool, reference images within the neighbourhood of some drawn image (k = 3).
        covered: (m,) bool, reference images whose own neighbourhood (k = 5) has a drawn image.
    """

    inside: Tensor
    around: Tensor
    reached: Tensor
    covered: Tensor

    @property
    def precision(self) -> float:
        """Share of drawn images that look like reference images."""
        return self.inside.double().mean().item()

    @property
    def recall(self) -> float:
        """Share of reference images that the drawn images reach."""
        return self.reached.double().mean().item()

    @property
    def density(self) -> float:
        """Mean number of neighbourhoods that a drawn image lies in, over k: 1 for equal distributions."""
        return self.around.double().mean().item() / COVERAGE_NEIGHBOURS

    @property
    def coverage(self) -> float:
        """Share of reference images that have a drawn image nearby."""
        return self.covered.double().mean().item()


def neighbourhoods(drawn: Tensor, reference: Tensor, *, half: bool = False) -> Neighbourhoods:
    """Compare two sets of feature vectors.

    Args:
        drawn: (n, D) float32.
        reference: (m, D) float32, on the same device.
        half: Distances in float16, as in OpenAI's evaluator, where rounding makes its own ties; see
            `squared_distances`.

    Raises:
        ValueError: a set has no more than five images.
    """
    if not half:
        drawn, reference = centred(drawn, reference)
    near, wide = map(upper, radii(reference, (PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS), half=half))
    (drawn_near,) = map(upper, radii(drawn, (PRECISION_NEIGHBOURS,), half=half))
    inside, around = [], []
    reached = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    covered = torch.zeros_like(reached)
    for start, distances in blocks(drawn, reference, half=half):
        inside.append((distances <= near).any(1))
        within = distances <= wide
        around.append(within.sum(1))
        covered |= within.any(0)
        reached |= (distances <= drawn_near[start : start + len(distances), None]).any(0)
    return Neighbourhoods(torch.cat(inside).cpu(), torch.cat(around).cpu(), reached.cpu(), covered.cpu())
