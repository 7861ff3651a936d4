"""Zero-shot evaluation, and its report over benchmarks."""

from .report import write_report
from .zero_shot import ZeroShotSemSegEvaluator

__all__ = ["ZeroShotSemSegEvaluator", "write_report"]
