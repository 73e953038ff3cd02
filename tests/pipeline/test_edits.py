"""An edit is drawn once its parts fit."""

import pytest
import torch

from mvar_models.pipeline.canvas import Canvas
from mvar_models.pipeline.edits import Edit, alike, draw_edit, size_of

from tiny_models import tiny_mvar, tiny_vqvae


def test_lists_of_one_are_repeated():
    assert alike(image=["a"], labels=[1, 2]) == [["a", "a"], [1, 2]]
    assert alike(image=["a", "b"], labels=[1]) == [["a", "b"], [1, 1]]
    with pytest.raises(ValueError, match=r"image.*labels \(3\), got 2"):
        alike(image=["a", "b"], labels=[1, 2, 3])


def test_sizes_are_written_width_first():
    assert size_of(torch.zeros(3, 4, 6)) == "6 x 4"


def test_an_unknown_rule_is_refused_before_anything_is_drawn():
    canvas = Canvas.of(torch.zeros(3, 16, 16), torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"rule.*'open'"):
        draw_edit(tiny_mvar(), tiny_vqvae(), Edit([canvas], "open", 0, True, None), [1], "pil", {})
