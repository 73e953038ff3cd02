"""CONTRIBUTING's recipe: a sampling option is a field of the settings, its default, and what acts on it.

A temperature is added to a copy of the library by changing three files, and goes from there everywhere that
settings go: a call, a flag, a preset file, config.json and the record.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_FILES = 4

CHANGES = {
    "sampling/settings.py": [
        (
            "    def __post_init__",
            '    temperature: float = field(default=1.0, metadata=_option("Divides the logits."))\n\n'
            "    def __post_init__",
        ),
        ("    sampler: Any\n", "    sampler: Any\n    temperature: float | None\n"),
    ],
    "config.py": [
        ('    sampler: str = "ancestral"\n', '    sampler: str = "ancestral"\n    temperature: float = 1.0\n')
    ],
    "sampling/sampler.py": [
        ("sample_codes(logits, context", "sample_codes(logits / settings.temperature, context")
    ],
}

PROGRAM = """
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import mvar_models
from mvar_models import MVARPipeline
from mvar_models.cli.main import main
from mvar_models.sampling.settings import SamplingSettings

assert Path(mvar_models.__file__).is_relative_to(Path.cwd()), "the copy"
pipeline = MVARPipeline.from_pretrained("mvar-digits")
plain = pipeline([3], seed=0, output_type="np").images[0]
cold = pipeline([3], seed=0, temperature=0.01, output_type="np").images[0]
assert (plain != cold).any()


def sampled(folder, *options):
    main(["sample", "--out", folder, *options], standalone_mode=False)
    assert json.loads(Path(folder, "samples.json").read_text())["settings"]["temperature"] == 0.01
    assert np.array_equal(np.array(Image.open(Path(folder, "00000_three.png"))), cold), folder


digit = ["--model", "mvar-digits", "--labels", "3", "--n", "1"]
sampled("flag", *digit, "--temperature", "0.01")
sampled("again", "--again", "flag/samples.json")
SamplingSettings.of(pipeline.model.config, temperature=0.01).write(Path("preset.json"))
sampled("preset", *digit, "--preset", "preset.json")
kept = MVARPipeline.from_pretrained("mvar-digits", preset="preset.json").save_pretrained("saved")
assert json.loads((kept / "config.json").read_text())["temperature"] == 0.01
for wrong in ("cold", float("nan")):
    try:
        pipeline([3], temperature=wrong)
    except (TypeError, ValueError) as error:
        assert "temperature must be" in str(error)
    else:
        sys.exit("taken: " + repr(wrong))
"""


def test_an_option_reaches_all_that_settings_reach(tmp_path):
    assert len(CHANGES) <= MOST_FILES
    copy = tmp_path / "mvar_models"
    shutil.copytree(ROOT / "mvar_models", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in CHANGES.items():
        text = (copy / name).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        (copy / name).write_text(text, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
