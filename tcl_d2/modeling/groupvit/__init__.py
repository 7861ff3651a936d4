"""GroupViT's encoders (Xu et al., CVPR 2022), on transformers' GroupViTModel."""

from .encoder import FrozenGroupViT, GroupedImages
from .loading import build_groupvit, check_groupvit
from .official import from_official, is_official, to_official

__all__ = [
    "FrozenGroupViT",
    "GroupedImages",
    "build_groupvit",
    "check_groupvit",
    "from_official",
    "is_official",
    "to_official",
]
