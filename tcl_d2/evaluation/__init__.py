"""Zero-shot evaluation, and its report over benchmarks."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .objects import object_output
from .report import verify_results, write_report
from .zero_shot import SharedImagesEvaluator, ZeroShotSemSegEvaluator

__all__ = [
    "EVALUATOR_REGISTRY",
    "SharedImagesEvaluator",
    "ZeroShotSemSegEvaluator",
    "build_evaluator",
    "object_output",
    "verify_results",
    "write_report",
]
