"""Figures of the official releases of SCLIP, NACLIP, ClearCLIP, ProxyCLIP and MaskCLIP on a small random CLIP, fp32.

They are of SCLIP b56bd30, NACLIP 0cac3a6, ClearCLIP ad68a40, ProxyCLIP e7b767f and MaskCLIP 245d31f.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import open_clip
import torch

from tcl_d2.modeling import DenseCLIP, FrozenCLIP
from tcl_d2.modeling.dense_clip import DenseHead
from tcl_d2.words.vocabulary import WordSubset

PATH = Path(__file__).parent / "dense_clip.pt"
IMAGES = ("square", "wide", "same_count")  # wide: resized position embeddings; same_count: 4 x 9 patches for 6 x 6


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


def build_clip(quick_gelu: bool = True) -> FrozenCLIP:
    """Build the small CLIP; MaskCLIP's release has the exact GELU and another epsilon of LayerNorm."""
    meta = load()["meta"]
    vision = {"image_size": 48, "layers": 3, "width": 128, "head_width": 64, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": meta["vocab"], "width": 64, "heads": 1, "layers": meta["text_layers"]}
    model = open_clip.model.CLIP(
        embed_dim=32,
        quick_gelu=quick_gelu,
        vision_cfg=open_clip.model.CLIPVisionCfg(**vision),
        text_cfg=open_clip.model.CLIPTextCfg(**text),
    )
    model.load_state_dict({key: value.float() for key, value in load()["clip"].items()})
    for module in model.visual.modules():
        if isinstance(module, torch.nn.LayerNorm) and not quick_gelu:
            module.eps = 1e-6
    return FrozenCLIP(model)


def build_model(head: DenseHead | None = None, quick_gelu: bool = True, **options) -> DenseCLIP:
    """Build a DenseCLIP that gives cosines. Images are given normalized, so the mean is 0 and the deviation 1."""
    protocol = {"templates": ("{}",), "crop_size": 48, "stride": 24, "background_score": 0.0, **options}
    model = DenseCLIP(
        head=head,
        scores="cosine",
        clip=build_clip(quick_gelu),
        tokenizer=None,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(1.0, 1.0, 1.0),
        **protocol,
    )
    return model.eval()


def image(name: str) -> torch.Tensor:
    return load()["images"][name].float()


def set_words(model: DenseCLIP, classes: torch.Tensor, background: bool) -> None:
    """Give a model the golden text features, with the class of each word."""
    text = load()["text"]
    model.set_text_embeddings(text)
    subset = WordSubset(torch.arange(len(text)), classes.long(), int(classes.max()) + 1, background)
    model._requested = replace(model._requested, subsets=[subset])
