"""The emulated GPUs of the tests of machine code."""

import pytest

from machine_code_support import CAPABILITIES


@pytest.fixture(params=CAPABILITIES)
def gpu(request):
    from emulated_gpu import mvar_backend

    with mvar_backend.emulated(request.param) as emulated:
        yield emulated
