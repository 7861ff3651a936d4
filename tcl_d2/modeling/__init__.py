"""The model: pure tensors in, tensors out below the meta-architectures. Each name is imported when it is first used."""

from ..utils.imports import lazy_names

_NAMES = {
    "dense_clip": ("DENSE_HEAD_REGISTRY", "DenseCLIP", "DenseHead", "MaskCLIP", "build_dense_head"),
    "encoders": ("DualEncoder", "FrozenCLIP", "FrozenDualEncoder", "build_clip", "build_tokenizer"),
    "groupvit": ("GroupViT",),
    "reco": ("ReCo",),
    "refiners": (
        *("DenseCRF", "LPOSS", "PAMR", "PixelLPOSS", "REFINER_REGISTRY", "Refiner", "RefinerChain", "RegionVote"),
        "build_refiner",
    ),
    "segmentor.base": ("ZeroShotSegmentor",),
    "segmentor.crops": ("CropFeatures", "CropMap"),
    "tcl": ("Grounder", "Grounding", "Sim2Mask", "TCL", "TCL_LOSS_REGISTRY", "build_losses"),
}
__all__, __getattr__ = lazy_names(__name__, _NAMES)
