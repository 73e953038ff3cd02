"""Labels in, images out."""

from mvar_models.config import RELEASED_SIDES
from mvar_models.pipeline.base import (
    MarkovVARPipeline,
    MVARPipeline,
    Pipeline,
    VARPipeline,
    fitted,
    model_for,
    pipeline_for,
    pipeline_of,
)

__all__ = [
    "RELEASED_SIDES",
    "MVARPipeline",
    "MarkovVARPipeline",
    "Pipeline",
    "VARPipeline",
    "fitted",
    "model_for",
    "pipeline_for",
    "pipeline_of",
]
