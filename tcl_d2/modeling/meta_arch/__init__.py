"""The meta-architectures, a file for each system."""

from .dense_clip import DenseCLIP, MaskCLIP
from .tcl import TCL

__all__ = ["DenseCLIP", "MaskCLIP", "TCL"]
