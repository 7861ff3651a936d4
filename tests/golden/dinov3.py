"""Figures of timm's DINOv3 (1.0.31) on small random weights, fp32; the official model gives the same."""

from functools import lru_cache
from pathlib import Path

import timm
import torch
from timm.models import register_model
from timm.models.eva import Eva

from tcl_d2.modeling.encoders.vision import VisionEncoder, build_vision_model

PATH = Path(__file__).parent / "dinov3.pt"


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


@register_model
def golden_dinov3(pretrained: bool = False, **options) -> Eva:
    """Build the small DINOv3, without weights, for timm's create_model."""
    size = {"embed_dim": 128, "num_heads": 2, "depth": 3, "mlp_ratio": 2}
    return timm.create_model("vit_base_patch16_dinov3", pretrained=False, **size, **options)


def build_vision() -> VisionEncoder:
    """Build the encoder of images as the golden file has them: normalized as DINOv3's."""
    model = build_vision_model("MODEL.RECO.ENCODER", "golden_dinov3", "")
    model.load_state_dict({name: value.float() for name, value in load()["vision"].items()})
    return VisionEncoder(model)
