"""The model: pure tensors in, tensors out below the meta-architectures."""

from .clip import FrozenCLIP
from .clip_loading import build_clip, build_tokenizer
from .grounder import Grounder, Sim2Mask
from .losses import TCL_LOSS_REGISTRY, Grounding, build_losses
from .meta_arch import TCL, MaskCLIP
from .pamr import PAMR
from .segmentor import CropFeatures, ZeroShotSegmentor

__all__ = [
    "CropFeatures",
    "FrozenCLIP",
    "Grounder",
    "Grounding",
    "MaskCLIP",
    "PAMR",
    "Sim2Mask",
    "TCL",
    "TCL_LOSS_REGISTRY",
    "ZeroShotSegmentor",
    "build_clip",
    "build_losses",
    "build_tokenizer",
]
