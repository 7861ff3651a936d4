"""TCL (text-grounded contrastive learning, CVPR 2023) as a Detectron2 plugin. Importing it registers everything."""

import sys
from importlib.util import find_spec

if find_spec("detectron2") is None:
    raise ModuleNotFoundError(
        "tcl_d2 needs Detectron2, which is not on PyPI under its name. There are two ways to get it:\n"
        "  pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'\n"
        "    the official way, which compiles it; torch must be installed\n"
        f"  python tools/setup_env.py --python {sys.executable}\n"
        "    in a clone of tcl_d2: a redistribution from PyPI, pinned by its hash",
        name="detectron2",
    )

from . import assets, data, modeling  # noqa: E402, F401  (registers)
from .config import add_tcl_config, load_config  # noqa: E402
from .utils import downloads  # noqa: E402, F401  (registers)
from .version import __version__  # noqa: E402

__all__ = ["__version__", "add_tcl_config", "load_config"]
