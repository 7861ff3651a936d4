"""GroupViT's encoders (Xu et al., CVPR 2022), on transformers' GroupViTModel."""

from .encoder import GroupedImages, GroupViTEncoder
from .loading import build_groupvit, check_groupvit, is_file, load_official
from .multi_label import MultiLabelLoss
from .official import from_official
from .untrained import build_untrained_groupvit

__all__ = [
    "GroupViTEncoder",
    "GroupedImages",
    "MultiLabelLoss",
    "build_groupvit",
    "build_untrained_groupvit",
    "check_groupvit",
    "from_official",
    "is_file",
    "load_official",
]
