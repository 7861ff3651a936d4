"""The meta-architectures, a file for each system."""

from .maskclip import MaskCLIP
from .tcl import TCL

__all__ = ["MaskCLIP", "TCL"]
