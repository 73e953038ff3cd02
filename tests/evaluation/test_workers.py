"""One process alone is a group of its own."""

import pytest

from mvar_models.evaluation.workers import Alone
from mvar_models.training.processes import Processes


@pytest.mark.parametrize("workers", [Alone(), Processes()])
def test_alone(workers):
    assert (workers.rank, workers.world_size) == (0, 1)
    assert workers.gather("part") == ["part"]
    assert workers.on_first(lambda: 3) == 3
    workers.all_well(None)
    with pytest.raises(ValueError, match="broken"):
        workers.all_well(ValueError("broken"))
