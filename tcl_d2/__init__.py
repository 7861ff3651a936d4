"""TCL (text-grounded contrastive learning, CVPR 2023) as a Detectron2 plugin. Importing it registers everything."""

from . import assets, data, modeling  # noqa: F401  (registers)
from .config import add_tcl_config, load_config
from .utils import downloads  # noqa: F401  (registers)
from .version import __version__

__all__ = ["__version__", "add_tcl_config", "load_config"]
