"""Figures of the official GroupViT release (commit 13b7861) on a small random model, fp32, and the model of them."""

from functools import lru_cache
from pathlib import Path

import torch

from tcl_d2.modeling import GroupViT
from tcl_d2.modeling.groupvit import GroupViTEncoder, build_untrained_groupvit, load_official

PATH = Path(__file__).parent / "groupvit.pt"
SIZES = {"image_size": 96, "width": 64, "depths": (2, 1, 1), "groups": (8, 4), "num_heads": 4}
SIZES |= {"text_width": 64, "text_depth": 2, "vocab_size": 512, "projection_width": 96, "embed_dim": 32}
WHOLE = ("square", "oblong")  # oblong: resized position embeddings


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


def build_encoder(path: Path = PATH) -> GroupViTEncoder:
    model = build_untrained_groupvit(**SIZES)
    load_official(model, str(path))
    return GroupViTEncoder(model).eval()


def build_model(**options) -> GroupViT:
    """Build the golden model in eval mode. Images are given normalized, so the mean is 0 and the deviation 1."""
    config = load()["config"]
    protocol = {"crop_size": config["crop"], "stride": config["stride"], "background_score": 0.95, **options}
    model = GroupViT(
        clip=build_encoder(),
        tokenizer=None,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(1.0, 1.0, 1.0),
        templates=("{}",),
        **protocol,
    )
    return model.eval()


def image(name: str) -> torch.Tensor:
    return load()["images"][name].float()
