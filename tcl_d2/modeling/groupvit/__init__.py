"""GroupViT (Xu et al., CVPR 2022), its encoders on transformers' GroupViTModel."""

from .encoder import GroupViTEncoder
from .loading import build_groupvit, check_groupvit, load_official
from .model import GroupViT
from .untrained import build_untrained_groupvit

__all__ = [
    "GroupViT",
    "GroupViTEncoder",
    "build_groupvit",
    "build_untrained_groupvit",
    "check_groupvit",
    "load_official",
]
