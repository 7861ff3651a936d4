"""The image tower of the small world's CLIP as a vision model of timm, by the name of shapes_clip_vit."""

from typing import cast

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer


@register_model
def shapes_clip_vit(pretrained: bool = False, **options) -> VisionTransformer:
    """Build it for timm's create_model; its weights are tcl_d2://shapes_clip/weights.safetensors."""
    size = {"img_size": 48, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 2}
    options["pretrained_cfg_overlay"] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return cast(VisionTransformer, timm.create_model("vit_base_patch16_clip_quickgelu_224", **size, **options))
