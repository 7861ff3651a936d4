"""Figures of Talk2DINO's official release (4918c2d) on small random models, fp32, and the model of them."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import open_clip
import timm
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from tcl_d2.modeling import Talk2DINO
from tcl_d2.modeling.encoders.vision import DINOV2_POSITIONS, PositionRule, VisionEncoder, build_vision_model
from tcl_d2.modeling.talk2dino import Projection
from tcl_d2.modeling.talk2dino.model import TextTower
from tcl_d2.words.vocabulary import WordSubset

PATH = Path(__file__).parent / "talk2dino.pt"
KEY = "MODEL.TALK2DINO"
IMAGENET = {
    "pixel_mean": [255 * value for value in (0.485, 0.456, 0.406)],
    "pixel_std": [255 * value for value in (0.229, 0.224, 0.225)],
}


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


def weights(part: str) -> dict[str, torch.Tensor]:
    """Return the weights of "dino", "projection" or "clip_text", in the release's names, fp32."""
    return {name: value.float() for name, value in load()[part].items()}


@register_model
def golden_dinov2(pretrained: bool = False, **options) -> VisionTransformer:
    """Build the small DINOv2, without weights, for timm's create_model."""
    meta = load()["meta"]
    size = {"embed_dim": meta["width"], "depth": meta["depth"], "num_heads": meta["heads"], "mlp_ratio": 1}
    return timm.create_model("vit_small_patch14_reg4_dinov2", img_size=14 * meta["grid"], **size, **options)


def build_vision(folder: Path, position: PositionRule = DINOV2_POSITIONS) -> VisionEncoder:
    """Build the image model from a file in DINOv2's own layout."""
    torch.save(weights("dino"), folder / "dinov2.pth")
    model = build_vision_model(KEY, "golden_dinov2", str(folder / "dinov2.pth"))
    return VisionEncoder(model, position, **IMAGENET)


def build_text() -> TextTower:
    meta = load()["meta"]
    text = {"context_length": meta["context"], "vocab_size": meta["vocab"], "width": meta["text_width"], "heads": 1}
    clip = open_clip.model.CLIP(
        embed_dim=meta["embed"],
        quick_gelu=True,
        vision_cfg=open_clip.model.CLIPVisionCfg(image_size=16, layers=1, width=64, head_width=64, patch_size=16),
        text_cfg=open_clip.model.CLIPTextCfg(**text, layers=meta["text_layers"]),
    )
    unfit = clip.load_state_dict(weights("clip_text"), strict=False)
    assert not unfit.unexpected_keys and all(name.startswith("visual.") for name in unfit.missing_keys)
    return TextTower(clip, meta["width"], 14)


def build_projection() -> Projection:
    meta = load()["meta"]
    projection = Projection(meta["embed"], meta["width"])
    projection.load_state_dict(weights("projection"))
    return projection


def build_model(vision: VisionEncoder, model_class: type[Talk2DINO] = Talk2DINO, **options) -> Talk2DINO:
    """Build the golden model in eval mode, without words; images are RGB in 0..255."""
    meta = load()["meta"]
    protocol = {"templates": ("{}",), "crop_size": meta["crop"], "stride": meta["stride"]}
    options = {"background_score": meta["bg"], "image_size": meta["crop"], **protocol, **IMAGENET, **options}
    parts = {"vision": vision, "projection": build_projection(), "clip": build_text(), "tokenizer": None}
    return model_class(**parts, **options).eval()


def set_words(model: Talk2DINO, background: bool) -> None:
    """Give a model the golden text features, a word a class, beside a background or without."""
    text = load()["text"]["embedding"]
    model.set_text_embeddings(text)
    classes = torch.arange(len(text)) + int(background)
    subset = WordSubset(torch.arange(len(text)), classes, len(text) + int(background), background)
    model._requested = replace(model._requested, subsets=[subset])
