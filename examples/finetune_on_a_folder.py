"""Fine-tune the embedded VAR into an MVAR on a folder with one folder of images per class, then sample.

`python examples/finetune_on_a_folder.py photos --steps 200`; without a folder it draws bars.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.training.runs import start_transformer_run, train_transformer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", nargs="?", type=Path)
parser.add_argument("--out", type=Path, default=Path("runs/example"))
parser.add_argument("--steps", type=int, default=8)
arguments = parser.parse_args()

folder = arguments.folder or arguments.out.with_name("bars")
if arguments.folder is None:
    noise = np.random.default_rng(0)
    for name, axis in (("across", 0), ("down", 1)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            distance = np.indices((32, 32))[axis] - noise.integers(8, 24)
            bar = 255 * np.exp(-((distance / 3) ** 2))  # as soft as the digits that the VQVAE has learnt
            Image.fromarray(bar.astype(np.uint8)).save(folder / name / f"{number}.png")

# The same as `mvar finetune --model var-digits --data FOLDER ...` in a shell.
shape = {"kernel_size": 3, "dense_scales": 3, "batch_size": 8, "lr": 1e-3, "steps": arguments.steps}
run = start_transformer_run(data=str(folder), out=str(arguments.out), init="var-digits", **shape)
print(f"held-out cross-entropy {train_transformer(run)['val_loss']:.3f} nats per code")

pipeline = MVARPipeline.from_pretrained(arguments.out / "model")
pipeline(pipeline.model.config.class_names[:1], seed=0)[0].save(arguments.out / "sample.png")
print(f"classes {', '.join(pipeline.model.config.class_names)}; a sample: {arguments.out / 'sample.png'}")
