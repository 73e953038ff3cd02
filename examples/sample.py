"""Draw digits with the embedded MVAR and save them, scale by scale, as one grid.

`python examples/sample.py --labels three 7 --out samples.png`
"""

import argparse

from mvar_models import MVARPipeline
from mvar_models.images import grid

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="mvar-digits", help="any MVAR, such as mvar-d16")
parser.add_argument("--labels", nargs="*", default=["three", "7", "0"], help="class numbers or names")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="samples.png")
arguments = parser.parse_args()

pipeline = MVARPipeline.from_pretrained(arguments.model)
# output.scales[s] holds the images as they were after scale s; the last entry equals `output.images`.
output = pipeline(arguments.labels, seed=arguments.seed)
every_scale = [scale[index] for index in range(len(output)) for scale in output.scales]
grid(every_scale, len(output.scales)).save(arguments.out)
print(f"{len(output)} images, coarse to fine from left to right: {arguments.out}")
