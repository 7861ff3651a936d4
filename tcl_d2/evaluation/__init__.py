"""Zero-shot evaluation, and its report over benchmarks."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .measures import MEASURE_REGISTRY, Measure
from .objects import needed_outputs
from .report import check_expected_results, verify_results, write_report
from .zero_shot import SharedImagesEvaluator, ZeroShotSemSegEvaluator

__all__ = [
    "EVALUATOR_REGISTRY",
    "MEASURE_REGISTRY",
    "Measure",
    "SharedImagesEvaluator",
    "ZeroShotSemSegEvaluator",
    "build_evaluator",
    "check_expected_results",
    "needed_outputs",
    "verify_results",
    "write_report",
]
