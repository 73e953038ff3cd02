#!/bin/sh
# Makes the three embedded models from nothing, with this project's own commands. Run by `make weights`; needs the `train` extra.
set -eu
runs=${1:-runs/digits}
here=$(cd "$(dirname "$0")" && pwd)

# Rounds a finished run's model to half precision and puts it beside this script.
pack() {
    python - "$1" "$here/$2" <<'PYTHON'
import sys
import torch
from mvar_models import MVAR, VAR, VQVAE
from mvar_models.config import read_config
from pathlib import Path

model_folder, target = Path(sys.argv[1]), sys.argv[2]
classes = {cls.config_class.model_type: cls for cls in (MVAR, VAR, VQVAE)}
model = classes[read_config(model_folder / "config.json")["model_type"]].from_pretrained(model_folder)
if not isinstance(model, VQVAE):
    model.config = model.config.replace(vqvae="vae-digits")
model.save_pretrained(target, dtype=torch.float16)
PYTHON
}

mvar train-vqvae --data digits --out "$runs/vae" --steps 3000 --batch-size 32 --lr 2e-3 --vocab-size 256 --z-channels 16 --validate-every 500
pack "$runs/vae/model" vae-digits

mvar train --arch var --data digits --out "$runs/var" --steps 1500 --batch-size 32 --lr 2e-3 --copies 12 \
    --depth 4 --width 128 --num-heads 4 --shared-adaln --validate-every 250
pack "$runs/var/model" var-digits

mvar finetune --model var-digits --data digits --out "$runs/mvar" --steps 800 --batch-size 32 --lr 1e-3 --copies 12 \
    --kernel-size 3 --dense-scales 3 --validate-every 100
pack "$runs/mvar/model" mvar-digits
