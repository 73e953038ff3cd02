"""Every kind of training in every mode with every flag trains or is refused in one line, as the docs say."""

import json
import re
from pathlib import Path

import pytest
import torch
import walk

from mvar_models.training.parallel import cannot_shard

from run_cases import TORCHRUN, start

TABLE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Mode -> "task flag" -> what it ended with."""
    if (reason := cannot_shard(torch.device("cpu"))) is not None:
        pytest.skip(reason)
    top = tmp_path_factory.mktemp("walk")
    walk.prepare(top)
    for before, modes in ((None, ["one"]), (TORCHRUN, ["ddp", "fsdp"])):
        process = start(top, *modes, program=[walk.__file__], **({"before": before} if before else {}))
        output = process.communicate()[0]
        assert process.returncode == 0, output
    return {mode: json.loads((top / f"{mode}.json").read_text()) for mode in walk.MODES}


def read_table():
    """Return the table of the docs: (row, task) -> whether it trains."""
    lines = re.search(r"## What goes together\n.*?\n(\|.*?)\n\n", TABLE.read_text("utf-8"), re.S)[
        1
    ].splitlines()
    tasks = [cell.strip() for cell in lines[0].strip("|").split("|")][1:]
    rows = {}
    for line in lines[2:]:
        name, *cells = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        rows |= {(name, task): cell == "yes" for task, cell in zip(tasks, cells, strict=True)}
    return rows


@pytest.mark.parametrize(
    "mode, task, flag",
    [(mode, task, flag) for mode in walk.MODES for task in walk.TASKS for flag in walk.chosen(task, mode)],
)
def test_it_trains_or_is_refused(ended, mode, task, flag):
    table = read_table()
    result = ended[mode][f"{task} {flag}"]
    if table[walk.MODES[mode], task] and (flag == "none" or table[flag, task]):
        assert result == "trained"
    else:
        assert re.match("(ValueError|TypeError): [^\\n]+$", result), result
        assert "was written" not in result, "it is refused before anything is written"
