"""TCL (text-grounded contrastive learning, CVPR 2023) as a Detectron2 plugin. Importing it registers everything."""

from . import assets, data, modeling  # noqa: F401  (registers)
from .config import add_tcl_config

__version__ = "0.1.0"
__all__ = ["add_tcl_config"]
