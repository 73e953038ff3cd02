"""Processes that keep the machine busy while something else is measured."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# What a neighbour runs. Each prints a line when it is busy, and stays so until it is stopped. It also ends
# with the process that started it, which may be killed before it can stop anything.
_BUSY = "import os\nparent = os.getppid()\nprint(flush=True)\nwhile os.getppid() == parent: "
LOOP = f"{_BUSY}sum(range(10000))"
PYTORCH = f"import torch\nmatrix = torch.randn(1024, 1024)\nmatrix @ matrix\n{_BUSY}matrix @ matrix"


@contextlib.contextmanager
def neighbour(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program beside this one, from when it is busy to the end of the block.

    Yields:
        The process.

    Raises:
        RuntimeError: it ended early, so that what was measured was not measured beside it.
    """
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"the neighbour process ended by itself, with exit code {process.returncode}")
    finally:
        process.kill()
        process.communicate()
