"""From words and windows to labels: the base of all methods."""

from .base import ZeroShotSegmentor
from .crops import CropFeatures, CropMap

__all__ = ["CropFeatures", "CropMap", "ZeroShotSegmentor"]
