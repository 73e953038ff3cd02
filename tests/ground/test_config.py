"""Settings: what they derive, and which are refused."""

import pytest

from mvar_models import MVAR, VAR, MVARConfig
from mvar_models.config import residual_assignment


def test_residual_assignment_is_that_of_float64():
    assert residual_assignment(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


def test_windows_that_cannot_be():
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
        MVARConfig(kernel_size=0, dense_scales=10)
    assert MVAR.from_var(VAR.from_pretrained("var-digits")).config.dense_scales == 6
