"""The emulated GPUs of the tests of machine code."""

import pytest


@pytest.fixture(params=[80, 90])
def gpu(request):
    from emulated_gpu import mvar_backend

    with mvar_backend.emulated(request.param) as emulated:
        yield emulated
