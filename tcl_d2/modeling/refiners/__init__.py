"""Refiners, which bring scores to the image's edges: their interface and registry, PAMR, DenseCRF."""

from .base import NO_REFINER, REFINER_REGISTRY, Refiner, build_refiner, keep_scores, refiner_names
from .dense_crf import DenseCRF
from .pamr import PAMR

__all__ = [
    "DenseCRF",
    "NO_REFINER",
    "PAMR",
    "REFINER_REGISTRY",
    "Refiner",
    "build_refiner",
    "keep_scores",
    "refiner_names",
]
