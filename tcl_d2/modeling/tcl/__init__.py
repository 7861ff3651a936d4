"""The meta-architectures, a file for each system."""

from .dense_clip import DenseCLIP, MaskCLIP
from .groupvit import GroupViT
from .reco import ReCo
from .tcl import TCL

__all__ = ["DenseCLIP", "GroupViT", "MaskCLIP", "ReCo", "TCL"]
