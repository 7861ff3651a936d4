"""Datasets to evaluate on: benchmarks with labels of pixels, and annotations of objects."""

from .annotations import read_annotations
from .mapper import BenchmarkMapper, image_settings, model_input
from .register import (
    EVALUATOR_TYPE,
    benchmark_classes,
    benchmark_names,
    class_legend,
    register_benchmark,
    register_benchmark_folder,
)
from .tool_files import find_format, register_label_path

__all__ = [
    "EVALUATOR_TYPE",
    "BenchmarkMapper",
    "benchmark_classes",
    "benchmark_names",
    "class_legend",
    "find_format",
    "image_settings",
    "model_input",
    "read_annotations",
    "register_benchmark",
    "register_benchmark_folder",
    "register_label_path",
]
