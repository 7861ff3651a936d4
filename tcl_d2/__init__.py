"""TCL (text-grounded contrastive learning, CVPR 2023) as a Detectron2 plugin. Importing it registers everything.

Where Detectron2 is not installed, nothing is registered, and `tcl_d2.deploy` runs exported models.
"""

from .utils.installation import has_detectron2, require_detectron2
from .version import __version__

__all__ = ["__version__", "add_tcl_config", "load_config"]

if has_detectron2():
    from .registration import register, without_warnings

    with without_warnings():
        from . import assets  # noqa: F401  (registers)
        from .config import add_tcl_config, load_config

        register()


def __getattr__(name: str) -> object:
    """Say what is missing, for names that need Detectron2; the others are no names of the package."""
    if name in __all__:
        require_detectron2()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
