"""Dense heads: what CLIP's last block does in a training-free segmentor."""

from .heads import (
    DENSE_HEAD_REGISTRY,
    ClearCLIPHead,
    CLIPHead,
    DenseHead,
    MaskCLIPHead,
    NACLIPHead,
    SCLIPHead,
    build_dense_head,
    check_dense_head,
)
from .proxyclip import ProxyCLIPHead

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
