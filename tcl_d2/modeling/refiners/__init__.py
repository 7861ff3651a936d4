"""Refiners, which make scores better without training: their interface and registry, and one file for each."""

from .base import (
    IMAGE_STAGES,
    NO_REFINER,
    REFINER_REGISTRY,
    Refiner,
    RefinerChain,
    keep_scores,
)
from .build import build_refiner, refiner_names
from .dense_crf import DenseCRF
from .lposs import LPOSS
from .lposs_plus import PixelLPOSS
from .pamr import PAMR
from .regions import RegionVote

__all__ = [
    "DenseCRF",
    "IMAGE_STAGES",
    "LPOSS",
    "NO_REFINER",
    "PAMR",
    "PixelLPOSS",
    "REFINER_REGISTRY",
    "Refiner",
    "RefinerChain",
    "RegionVote",
    "build_refiner",
    "keep_scores",
    "refiner_names",
]
