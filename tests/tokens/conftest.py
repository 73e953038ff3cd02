"""Datasets that several tests of codes read."""

import pytest

from mvar_models.data.digits import Digits

from odd_images import fill


@pytest.fixture(scope="session")
def digits():
    return Digits(16)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """A folder of odd, broken and plain images."""
    return fill(tmp_path_factory.mktemp("data") / "mixed")
