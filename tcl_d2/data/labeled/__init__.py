"""Labeled images to train on."""

from .datasets import LabeledDatasets, is_labeled, read_labeled_dataset, split_batch
from .mapper import SemSegDatasetMapper, check_num_absent

__all__ = [
    "LabeledDatasets",
    "SemSegDatasetMapper",
    "check_num_absent",
    "is_labeled",
    "read_labeled_dataset",
    "split_batch",
]
