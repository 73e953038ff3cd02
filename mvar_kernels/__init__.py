"""Fused attention over scale pyramids and neighborhoods. Importing it imports nothing heavy but torch."""

from importlib.metadata import PackageNotFoundError, version

from mvar_kernels.attention import neighborhood_attn, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.caches import clear_caches
from mvar_kernels.module import SpatialMarkovAttention
from mvar_kernels.pyramid import Neighborhood, Pyramid
from mvar_kernels.sampling import sample_codes

try:
    __version__ = version("mvar-kernels")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+tree"

__all__ = [
    "Neighborhood",
    "Pyramid",
    "SpatialMarkovAttention",
    "__version__",
    "clear_caches",
    "neighborhood_attn",
    "pyramid_markov_attn",
    "sample_codes",
    "spatial_markov_attn",
]
