"""Zero-shot evaluation, and its report over benchmarks."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .measures import MEASURE_REGISTRY, Measure
from .zero_shot import ZeroShotSemSegEvaluator

__all__ = ["EVALUATOR_REGISTRY", "MEASURE_REGISTRY", "Measure", "ZeroShotSemSegEvaluator", "build_evaluator"]
