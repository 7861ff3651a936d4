"""Segmentors that change what CLIP's last block does: MaskCLIP, SCLIP, ClearCLIP, NACLIP, ProxyCLIP, CLIP-DINOiser."""

from .clip_dinoiser import CLIPDINOiserHead
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
from .model import DenseCLIP, MaskCLIP
from .proxyclip import ProxyCLIPHead

__all__ = [
    "CLIPDINOiserHead",
    "CLIPHead",
    "ClearCLIPHead",
    "DENSE_HEAD_REGISTRY",
    "DenseCLIP",
    "DenseHead",
    "MaskCLIP",
    "MaskCLIPHead",
    "NACLIPHead",
    "ProxyCLIPHead",
    "SCLIPHead",
    "build_dense_head",
    "check_dense_head",
]
