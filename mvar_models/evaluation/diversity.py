"""Do the images of one class differ from each other as much as real ones of that class do?

Recall and coverage are of all images together, so that a model which draws one good picture of each class
loses little of either where classes are many. The distance within a class falls to 0 there.
"""

from __future__ import annotations

import numpy as np

from mvar_models.evaluation.comparison import Comparison, Unavailable


def class_diversity(comparison: Comparison) -> dict[str, float]:
    """Return the root mean square distance of two drawn images of a class, over that of two reference images.

    1 is as diverse as the reference. Each class with two images in both sets weighs the same. Damage such as
    noise moves images apart too, so that a value above 1 is no praise: read it beside precision.
    """
    drawn, reference = comparison.labels()
    first, second = (features.double() for features in comparison.features())
    ours: list[float] = []
    theirs: list[float] = []
    for label in np.intersect1d(drawn, reference):
        groups = first[drawn == label], second[reference == label]
        if min(map(len, groups)) < 2:
            continue
        # Two images differ by twice the variance, on average.
        for group, variances in zip(groups, (ours, theirs)):
            variances.append(group.var(0, correction=1).sum().item())
    if sum(theirs) == 0:
        raise Unavailable("no class has two different images in the reference, and two that were drawn")
    return {"class_diversity": float(np.sqrt(sum(ours) / sum(theirs)))}
