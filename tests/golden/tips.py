"""Figures of TIPSv2's official release (commit 4db271d) on small random towers, fp32, and the model of them."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tcl_d2.modeling.tips import TIPSEncoder, TIPSv2
from tcl_d2.modeling.tips.encoder import build_image_tower
from tcl_d2.modeling.tips.text import load_text_tower

PATH = Path(__file__).parent / "tips.pt"


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


@register_model
def golden_tips(pretrained: bool = False, **options) -> VisionTransformer:
    """Build the small image tower, without weights, for timm's create_model."""
    size = {"img_size": 98, "embed_dim": 128, "num_heads": 2, "depth": 3, "mlp_ratio": 2}
    return timm.create_model("vit_base_patch14_reg1_tipsv2", pretrained=False, **size, **options)


def write_tower(folder: Path, tower: str, prefix: str = "", **more: np.ndarray) -> str:
    """Write a tower's weights in the release's layout, and return the path."""
    path = folder / f"tips_{tower}.npz"
    np.savez(path, **{prefix + name: value.float().numpy() for name, value in load()[tower].items()}, **more)
    return str(path)


def text_tower() -> nn.Module:
    return load_text_tower(load()["text_tower"], load()["meta"]["text_heads"], "golden")


def build_encoder(folder: Path, mean: tuple = (0, 0, 0), std: tuple = (255, 255, 255)) -> TIPSEncoder:
    vision = build_image_tower("golden_tips", write_tower(folder, "vision"))
    return TIPSEncoder(vision, text_tower(), mean, std)


def build_model(clip: TIPSEncoder, model: type[TIPSv2] = TIPSv2, **options) -> TIPSv2:
    """Build the segmentor with the golden words and the release's windows."""
    options = {"pixel_mean": (0, 0, 0), "pixel_std": (255, 255, 255), "crop_size": 98, "stride": 74, **options}
    model = model(clip=clip, tokenizer=None, templates=("{}",), background_score=0.0, **options)
    model.set_text_embeddings(load()["text"]["class_vectors"])
    return model.eval()
