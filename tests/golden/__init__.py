"""Figures of the official TCL release (commit bc2b551) on a small random CLIP, fp32, and the model of them."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import open_clip
import torch

from tcl_d2.checkpoint import from_official
from tcl_d2.modeling import PAMR, TCL, FrozenCLIP
from tcl_d2.modeling.tcl.losses import (
    FeatureTCLLoss,
    ImageTCLLoss,
    ImageTVLoss,
    LossHead,
    MaskTVLoss,
    NegativeAreaLoss,
    PositiveAreaLoss,
)

PATH = Path(__file__).parent / "golden.pt"
CLIP_CONFIG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 128, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 256, "width": 64, "heads": 1, "layers": 2},
}


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


def write_clip(folder: Path) -> tuple[Path, Path]:
    """The golden CLIP as users would have it: a model config (JSON) and a weights file in OpenAI's layout."""
    config, weights = folder / "golden_clip.json", folder / "golden_clip.pt"
    config.write_text(json.dumps(CLIP_CONFIG))
    torch.save(load()["clip"], weights)
    return config, weights


def build_clip() -> FrozenCLIP:
    model = open_clip.model.CLIP(
        embed_dim=32,
        quick_gelu=True,
        vision_cfg=open_clip.model.CLIPVisionCfg(**CLIP_CONFIG["vision_cfg"]),
        text_cfg=open_clip.model.CLIPTextCfg(**CLIP_CONFIG["text_cfg"]),
    )
    model.load_state_dict({key: value.float() for key, value in load()["clip"].items()})
    return FrozenCLIP(model)


def build_heads() -> list[LossHead]:
    """Build the heads of the official release's losses, with its weights."""
    return [
        ImageTCLLoss(weight=0.1),
        FeatureTCLLoss(weight=0.1),
        PositiveAreaLoss(weight=0.4, prior=0.4),
        NegativeAreaLoss(weight=0.4, prior=0.0),
        ImageTVLoss(weight=1.0),
        MaskTVLoss(weight=1.0),
    ]


def build_model(pamr: bool = False, kp_weight: float = 0.0, heads: Sequence[LossHead] = (), **options) -> TCL:
    """Build the golden model in eval mode. Images are given normalized, so the mean is 0 and the deviation 1.

    Args:
        pamr: whether masks are refined.
        kp_weight: share of CLIP's own masks.
        heads: loss heads; () for those of the official release.
        options: further arguments of TCL.
    """
    model = TCL(
        clip=build_clip(),
        tokenizer=None,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(1.0, 1.0, 1.0),
        templates=("{}",),
        crop_size=48,
        stride=24,
        background_score=0.4,
        refiner=PAMR() if pamr else None,
        freeze=2,
        losses=heads or build_heads(),
        kp_weight=kp_weight,
        **options,
    )
    # The scales of its contrasts are the checkpoint's; other heads keep theirs, and a partner has its own weights
    model.load_state_dict(from_official(load()["model"]), strict=not heads and "kp_head" not in options)
    return model.eval()


LOSS_NAMES = {
    "tcli_loss": "loss_tcl_image",
    "tclf_loss": "loss_tcl_feature",
    "area_loss": "loss_area_pos",
    "neg_area_loss": "loss_area_neg",
    "tv_img_loss": "loss_tv_image",
    "tv_mask_loss": "loss_tv_mask",
}
