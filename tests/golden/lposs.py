"""Figures of the official LPOSS release (e489a74) on a small random CLIP and a small random DINO, fp32 and fp64."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import open_clip
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from tcl_d2.modeling import DenseCLIP, FrozenCLIP
from tcl_d2.modeling.dense_clip import MaskCLIPHead
from tcl_d2.modeling.encoders.vision import DINO_POSITIONS, VisionEncoder, build_vision_model
from tcl_d2.words.vocabulary import WordSubset

PATH = Path(__file__).parent / "lposs.pt"
PIXEL_MEAN = [255 * value for value in (0.48145466, 0.4578275, 0.40821073)]
PIXEL_STD = [255 * value for value in (0.26862954, 0.26130258, 0.27577711)]


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


@register_model
def golden_dino(pretrained: bool = False, **options) -> VisionTransformer:
    """Build the small DINO, without weights, for timm's create_model."""
    options = {name: value for name, value in options.items() if name in ("num_classes",)}
    return VisionTransformer(img_size=48, patch_size=8, embed_dim=64, depth=2, num_heads=2, **options)


def write_dino(folder: Path) -> str:
    """Write the small DINO's weights in the layout of facebookresearch's files, and return the path."""
    path = folder / "dino.pth"
    torch.save({name: value.float() for name, value in load()["dino"].items()}, path)
    return str(path)


@lru_cache(maxsize=1)
def build_vision() -> VisionEncoder:
    model = build_vision_model("TEST.ZERO_SHOT.LPOSS", "golden_dino", "")
    model.load_state_dict({name: value.float() for name, value in load()["dino"].items()})
    return VisionEncoder(model, DINO_POSITIONS, PIXEL_MEAN, PIXEL_STD)


def build_model(refiner, quick_gelu: bool = False) -> DenseCLIP:
    """Build MaskCLIP with a refiner, and with the golden words: of 7, the first 3 are one class."""
    meta = load()["meta"]
    vision = {"image_size": 48, "layers": 3, "width": 128, "head_width": 64, "patch_size": 8}
    text = {"context_length": 10, "vocab_size": meta["vocab"], "width": 64, "heads": 1, "layers": 1}
    clip = open_clip.model.CLIP(
        embed_dim=32,
        quick_gelu=quick_gelu,
        vision_cfg=open_clip.model.CLIPVisionCfg(**vision),
        text_cfg=open_clip.model.CLIPTextCfg(**text),
    )
    clip.load_state_dict({name: value.float() for name, value in load()["clip"].items()})
    model = DenseCLIP(
        head=MaskCLIPHead(),
        scores="cosine",
        clip=FrozenCLIP(clip),
        tokenizer=None,
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        templates=("{}",),
        crop_size=48,
        stride=24,
        background_score=0.0,
        join_words_first=True,
        refiner=refiner,
    )
    model.set_text_embeddings(load()["text"])
    subset = WordSubset(torch.arange(7), torch.tensor([0, 0, 0, 1, 2, 3, 4]), 5, False)
    model._requested = replace(model._requested, subsets=[subset])
    return model.eval()
