"""TCL: text-grounded contrastive learning (Cha et al., CVPR 2023)."""

from .losses import TCL_LOSS_REGISTRY, Grounding, build_losses
from .model import TCL

__all__ = ["Grounding", "TCL", "TCL_LOSS_REGISTRY", "build_losses"]
