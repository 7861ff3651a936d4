"""TCL (text-grounded contrastive learning, CVPR 2023) as a Detectron2 plugin. Importing it registers everything.

Where Detectron2 is not installed, nothing is registered, and `tcl_d2.deploy` runs exported models.
"""

from .utils.installation import has_detectron2, require_detectron2
from .version import __version__

__all__ = ["__version__", "add_tcl_config", "load_config"]

if has_detectron2():
    from .registration import register

    register()


def __getattr__(name: str) -> object:
    """Import what is asked for first now; where Detectron2 is missing, say so."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    require_detectron2()
    from . import config

    return getattr(config, name)
