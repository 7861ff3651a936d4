"""The model: pure tensors in, tensors out below the meta-architectures."""

from .clip import FrozenCLIP
from .clip_loading import build_clip, build_tokenizer
from .crop_segmentor import CropFeatures
from .dense_crf import DenseCRF
from .dense_heads import DENSE_HEAD_REGISTRY, DenseHead, build_dense_head
from .dual_encoder import DualEncoder, FrozenDualEncoder
from .grounder import Grounder, Sim2Mask
from .losses import TCL_LOSS_REGISTRY, Grounding, build_losses
from .meta_arch import TCL, DenseCLIP, GroupViT, MaskCLIP, ReCo
from .pamr import PAMR
from .refiner import REFINER_REGISTRY, Refiner, build_refiner
from .segmentor import ZeroShotSegmentor

__all__ = [
    "DENSE_HEAD_REGISTRY",
    "DenseCLIP",
    "DenseCRF",
    "DenseHead",
    "CropFeatures",
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
