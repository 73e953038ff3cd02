"""Every kind of training in every mode with every flag trains or is refused in one line, as the docs say."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import walk

from mvar_models.training.parallel import cannot_shard

from fork_cases import Forked, finish_pair

TABLE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Mode -> "task flag" -> what it ended with."""
    if sys.platform == "win32":
        pytest.skip("fork is POSIX")
    if (reason := cannot_shard(torch.device("cpu"))) is not None:
        pytest.skip(reason)
    top = tmp_path_factory.mktemp("walk")
    walk.prepare(top)
    assert Forked(lambda: walk.walk(top, ["one"])).wait() == 0
    finish_pair(lambda: walk.walk(top, ["ddp", "fsdp"]))
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


@pytest.mark.parametrize("mode, task, flag", walk.CHOSEN)
def test_it_trains_or_is_refused(ended, mode, task, flag):
    table = read_table()
    result = ended[mode][f"{task} {flag}"]
    if table[walk.MODES[mode], task] and (flag == walk.NONE or table[flag, task]):
        assert result == "trained"
    else:
        assert re.match("(ValueError|TypeError): [^\\n]+$", result), result
        assert "was written" not in result, "it is refused before anything is written"
