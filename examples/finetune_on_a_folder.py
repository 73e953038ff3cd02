"""Fine-tune the embedded VAR into an MVAR on a folder with one folder of images per class, then sample.

`python examples/finetune_on_a_folder.py photos --steps 200`; without a folder it draws stripes.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.cli.main import main

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", nargs="?", type=Path)
parser.add_argument("--out", type=Path, default=Path("runs/example"))
parser.add_argument("--steps", default="8")
arguments = parser.parse_args()

folder = arguments.folder or arguments.out.with_name("stripes")
if arguments.folder is None:
    noise = np.random.default_rng(0)
    for name, axis in (("across", 0), ("down", 1)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            stripes = np.indices((32, 32))[axis] // noise.integers(2, 6) % 2 * 255
            Image.fromarray(stripes.astype(np.uint8)).save(folder / name / f"{number}.png")

# The same as `mvar finetune --model var-digits --data FOLDER ...` in a shell.
options = ["--kernel-size", "3", "--dense-scales", "3", "--steps", arguments.steps, "--batch-size", "8"]
command = ["finetune", "--model", "var-digits", "--data", str(folder), "--out", str(arguments.out)]
main([*command, *options, "--lr", "1e-3", "--device", "cpu"], standalone_mode=False)

pipeline = MVARPipeline.from_pretrained(arguments.out / "model")
pipeline(pipeline.model.config.class_names[:1], seed=0)[0].save(arguments.out / "sample.png")
print(f"classes {', '.join(pipeline.model.config.class_names)}; a sample: {arguments.out / 'sample.png'}")
