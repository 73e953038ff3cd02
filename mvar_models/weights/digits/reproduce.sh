#!/bin/sh
# Trains the three embedded models from scratch with this project's own commands. `make weights` runs it; it needs
# the `train` extra.
set -eu
runs=${1:-runs/digits}
here=$(cd "$(dirname "$0")" && pwd)

# pack CLASS RUN NAME: rounds a finished run's model to half precision and stores it next to this script.
pack() {
    python - "$1" "$2/model" "$here/$3" <<'PYTHON'
import sys

import torch

import mvar_models

class_name, model_folder, target = sys.argv[1:]
model = getattr(mvar_models, class_name).from_pretrained(model_folder)
if class_name != "VQVAE":
    # The run names the VQVAE by its folder; the embedded model names the embedded one.
    model.config = model.config.replace(vqvae="vae-digits")
model.save_pretrained(target, dtype=torch.float16)
PYTHON
}

mvar train-vqvae --data digits --out "$runs/vae" --steps 3000 --batch-size 32 --lr 2e-3 \
    --vocab-size 256 --z-channels 16 --validate-every 500
pack VQVAE "$runs/vae" vae-digits

mvar train --arch var --data digits --out "$runs/var" --steps 1500 --batch-size 32 --lr 2e-3 --copies 12 \
    --depth 4 --width 128 --num-heads 4 --shared-adaln --validate-every 250
pack VAR "$runs/var" var-digits

mvar finetune --model var-digits --data digits --out "$runs/mvar" --steps 800 --batch-size 32 --lr 1e-3 --copies 12 \
    --kernel-size 3 --dense-scales 3 --validate-every 100
pack MVAR "$runs/mvar" mvar-digits
