"""Write the images that `mvar sample` gives for some seeds, for page.mjs: python test/expected.py FILE."""

import json
import sys
from pathlib import Path

from mvar_models.pipeline import pipeline_for

CASES = (("digits", 3, 0), ("digits", 8, 4294967295), ("emoji", 2, 5), ("emoji", 15, 1))

if __name__ == "__main__":
    cases = []
    for model, label, seed in CASES:
        pixels = pipeline_for(f"mvar-{model}")(label, seed=seed, output_type="np")[0]
        cases.append({"model": model, "label": label, "seed": seed, "pixels": pixels.ravel().tolist()})
    Path(sys.argv[1]).write_text(json.dumps(cases))
