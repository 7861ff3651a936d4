"""Labeled images to train on."""

from .datasets import LabeledDatasets, is_labeled, read_labeled_dataset, split_batch
from .mapper import SemSegDatasetMapper

__all__ = [
    "LabeledDatasets",
    "SemSegDatasetMapper",
    "is_labeled",
    "read_labeled_dataset",
    "split_batch",
]
