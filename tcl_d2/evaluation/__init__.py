"""Zero-shot evaluation, and its report over benchmarks."""

from .report import write_report
from .zero_shot import SharedImagesEvaluator, ZeroShotSemSegEvaluator

__all__ = ["SharedImagesEvaluator", "ZeroShotSemSegEvaluator", "write_report"]
