"""Fused attention over scale pyramids and neighborhoods. Importing this imports torch and nothing else heavy."""

from importlib.metadata import PackageNotFoundError, version

from mvar_kernels.attention import pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.module import SpatialMarkovAttention
from mvar_kernels.pyramid import Pyramid

try:
    __version__ = version("mvar")
except PackageNotFoundError:  # run from a tree that is not installed
    __version__ = "0+tree"

__all__ = ["Pyramid", "SpatialMarkovAttention", "__version__", "pyramid_markov_attn", "spatial_markov_attn"]
