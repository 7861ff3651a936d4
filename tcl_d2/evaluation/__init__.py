"""Zero-shot evaluation, and its report over benchmarks."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .objects import needed_outputs
from .report import verify_results, write_report
from .zero_shot import SharedImagesEvaluator, ZeroShotSemSegEvaluator

__all__ = [
    "EVALUATOR_REGISTRY",
    "SharedImagesEvaluator",
    "ZeroShotSemSegEvaluator",
    "build_evaluator",
    "needed_outputs",
    "verify_results",
    "write_report",
]
