"""Dense heads, a file for each: what CLIP's last block does in a training-free segmentor."""

from .clearclip import ClearCLIPHead
from .clip import CLIPHead
from .head import DENSE_HEAD_REGISTRY, DenseHead, build_dense_head, check_dense_head
from .maskclip import MaskCLIPHead
from .naclip import NACLIPHead
from .proxyclip import ProxyCLIPHead
from .sclip import SCLIPHead

__all__ = [
    "CLIPHead",
    "ClearCLIPHead",
    "DENSE_HEAD_REGISTRY",
    "DenseHead",
    "MaskCLIPHead",
    "NACLIPHead",
    "ProxyCLIPHead",
    "SCLIPHead",
    "build_dense_head",
    "check_dense_head",
]
