"""Replace NATTEN's module by `SpatialMarkovAttention`: same parameter names, same outputs.

Where NATTEN is not installed, dense attention with the window's mask stands in for it.
"""

import torch
from torch import nn

from mvar_kernels import Pyramid, SpatialMarkovAttention

DIM, HEADS, WINDOW, SIDE = 64, 4, 7, 16

try:
    from natten import NeighborhoodAttention2D

    before = NeighborhoodAttention2D(embed_dim=DIM, num_heads=HEADS, kernel_size=WINDOW)
except ImportError:
    before = nn.ModuleDict({"qkv": nn.Linear(DIM, 3 * DIM), "proj": nn.Linear(DIM, DIM)})

after = SpatialMarkovAttention(DIM, HEADS, WINDOW)
after.load_state_dict(before.state_dict())

features = torch.randn(2, SIDE, SIDE, DIM)
with torch.no_grad():
    if isinstance(before, nn.ModuleDict):
        qkv = before["qkv"](features).reshape(2, SIDE * SIDE, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mask = Pyramid([SIDE], WINDOW).mask()
        attended = nn.functional.scaled_dot_product_attention(*qkv, attn_mask=mask).transpose(1, 2)
        expected = before["proj"](attended.reshape(features.shape))
    else:
        expected = before(features)
    difference = (after(features) - expected).abs().max().item()
print(f"largest difference to {type(before).__name__}: {difference:.1e}")
assert difference < 1e-5
