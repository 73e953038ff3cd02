"""Memory and time of a layer of diffusers' LTX-2.5 decoder: `python -m scripts.ltx_memory ours`.

`theirs` takes diffusers' own FlexAttention processor. Peaks are of a process, so each has one of its own.
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers.models.autoencoders import ltx2_diffusion_decoder as ltx

from mvar_kernels.diffusers import NeighborhoodProcessor
from mvar_models.environment import peak_resident_bytes

GRID, WIDTH, WINDOW = (9, 32, 48), 256, (3, 7, 7)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("processor", choices=["ours", "theirs"])
    ours = parser.parse_args().processor == "ours"
    torch.manual_seed(0)
    layer = ltx.LTX2VideoVaeNeighborhoodAttention(WIDTH, WINDOW)
    layer.set_processor(NeighborhoodProcessor() if ours else ltx.LTX2VideoVaeNeighborhoodAttnProcessor())
    features = torch.randn(1, *GRID, WIDTH)
    before = peak_resident_bytes()
    layer(features)
    begun = time.perf_counter()
    out = layer(features)
    seconds, more = time.perf_counter() - begun, peak_resident_bytes() - before
    print(f"{more / 2**20:,.0f} MiB, second call {seconds:.2f} s, sum of outputs {out.double().sum():.4f}")


if __name__ == "__main__":
    main()
