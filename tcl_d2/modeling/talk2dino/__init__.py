"""Talk2DINO (Barsellotti et al., ICCV 2025): texts of CLIP, projected to the patches of a DINOv2 or DINOv3."""

from .model import Talk2DINO
from .projection import Projection

__all__ = ["Projection", "Talk2DINO"]
