"""TCL: text-grounded contrastive learning (Cha et al., CVPR 2023)."""

from .grounder import Grounder, Sim2Mask
from .losses import TCL_LOSS_REGISTRY, Grounding, build_losses
from .model import TCL

__all__ = ["Grounder", "Grounding", "Sim2Mask", "TCL", "TCL_LOSS_REGISTRY", "build_losses"]
