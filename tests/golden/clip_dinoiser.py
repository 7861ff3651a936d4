"""Figures of CLIP-DINOiser's official release (commit a954aae) on a small random CLIP, fp32, and the model of them."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import open_clip
import torch
from timm.models.vision_transformer import VisionTransformer

from tcl_d2.modeling import DenseCLIP, FrozenCLIP
from tcl_d2.modeling.dense_clip import CLIPDINOiserHead
from tcl_d2.modeling.encoders.vision import DINO_POSITIONS, VisionEncoder, _return_tokens
from tcl_d2.words.vocabulary import WordSubset

PATH = Path(__file__).parent / "clip_dinoiser.pt"
IMAGES = ("square", "wide", "same_count", "ragged")  # same_count: 4 x 9 patches for 6 x 6; ragged: padded
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


def build_clip(quick_gelu: bool = False) -> FrozenCLIP:
    """Build the small CLIP, whose text tower is random."""
    vision = {"image_size": 48, "layers": 4, "width": 128, "head_width": 64, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 256, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.model.CLIP(
        embed_dim=32,
        quick_gelu=quick_gelu,
        vision_cfg=open_clip.model.CLIPVisionCfg(**vision),
        text_cfg=open_clip.model.CLIPTextCfg(**text),
    )
    visual = {name.removeprefix("visual."): value.float() for name, value in load()["clip"].items()}
    model.visual.load_state_dict(visual)
    return FrozenCLIP(model)


def build_head(head_class: type[CLIPDINOiserHead] = CLIPDINOiserHead, **options) -> CLIPDINOiserHead:
    head = head_class(128, hidden=48, **options)
    head.load_state_dict({name: value.float() for name, value in load()["head"].items()})
    return head


def build_model(head: CLIPDINOiserHead | None = None, quick_gelu: bool = False, **options) -> DenseCLIP:
    """Build the golden model in eval mode; images are RGB in 0..255."""
    normalization = {"pixel_mean": CLIP_MEAN, "pixel_std": CLIP_STD}
    protocol = {"templates": ("{}",), "crop_size": 48, "stride": 24, "background_score": load()["meta"]["delta"]}
    model = DenseCLIP(
        head=head or build_head(),
        scores="probability",
        clip=build_clip(quick_gelu),
        tokenizer=None,
        **{**normalization, **protocol, **options},
    )
    return model.eval()


def set_words(model: DenseCLIP, background: bool) -> None:
    """Give a model the golden text features, a word a class; the first one is the background's."""
    text = load()["text"]
    model.set_text_embeddings(text)
    subset = WordSubset(torch.arange(len(text)), torch.arange(len(text)), len(text), background)
    model._requested = replace(model._requested, subsets=[subset])


def _build_teacher(state: dict[str, torch.Tensor], patch_size: int) -> VisionEncoder:
    """Build a DINO in facebookresearch's names, for the normalization of CLIP's images."""
    width = state["norm.weight"].shape[0]
    model = VisionTransformer(48, patch_size, num_classes=0, embed_dim=width, depth=2, num_heads=2)
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return VisionEncoder(_return_tokens(model), DINO_POSITIONS, CLIP_MEAN, CLIP_STD)


def build_dino() -> VisionEncoder:
    return _build_teacher(load()["train"]["dino"], 8)


def build_found() -> VisionEncoder:
    """Build the vision model of FOUND, without its convolution."""
    state = load()["train"]["found"]
    names = {name: value for name, value in state.items() if name.startswith("vit_encoder.")}
    return _build_teacher({name.removeprefix("vit_encoder."): value for name, value in names.items()}, 4)
