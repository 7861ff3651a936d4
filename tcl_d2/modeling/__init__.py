"""The model: pure tensors in, tensors out below the meta-architectures."""

import sys

from .dense_clip import DENSE_HEAD_REGISTRY, DenseCLIP, DenseHead, MaskCLIP, build_dense_head
from .encoders import DualEncoder, FrozenCLIP, FrozenDualEncoder, build_clip, build_tokenizer
from .groupvit import GroupViT
from .reco import ReCo
from .refiners import PAMR, REFINER_REGISTRY, DenseCRF, Refiner, build_refiner
from .segmentor import CropFeatures, CropMap, ZeroShotSegmentor
from .tcl import TCL, TCL_LOSS_REGISTRY, Grounder, Grounding, Sim2Mask, build_losses, losses, mask_statistics

# Paths that are documented besides the names below, as in `from tcl_d2.modeling.losses import LossHead`
sys.modules[f"{__name__}.losses"] = losses
sys.modules[f"{__name__}.mask_statistics"] = mask_statistics

__all__ = [
    "DENSE_HEAD_REGISTRY",
    "DenseCLIP",
    "DenseCRF",
    "DenseHead",
    "CropFeatures",
    "CropMap",
    "DualEncoder",
    "FrozenCLIP",
    "FrozenDualEncoder",
    "Grounder",
    "Grounding",
    "GroupViT",
    "MaskCLIP",
    "PAMR",
    "REFINER_REGISTRY",
    "ReCo",
    "Refiner",
    "Sim2Mask",
    "TCL",
    "TCL_LOSS_REGISTRY",
    "ZeroShotSegmentor",
    "build_clip",
    "build_dense_head",
    "build_losses",
    "build_refiner",
    "build_tokenizer",
]
