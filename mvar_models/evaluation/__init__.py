"""How good images are, in numbers."""

from mvar_models.evaluation.evaluator import evaluate, prepare_reference

__all__ = ["evaluate", "prepare_reference"]
