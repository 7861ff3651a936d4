"""Requirements beside the package: without Detectron2, only deployed models work."""

import sys
from importlib.util import find_spec


def has_detectron2() -> bool:
    """Return whether Detectron2 is installed."""
    return find_spec("detectron2") is not None


def require_detectron2() -> None:
    """Raise a ModuleNotFoundError that says how to get Detectron2, unless it is installed."""
    if not has_detectron2():
        raise ModuleNotFoundError(
            "tcl_d2 needs Detectron2, which is not on PyPI under its name. There are two ways to get it:\n"
            "  pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'\n"
            "    the official way, which compiles it; torch must be installed\n"
            f"  python tools/setup_env.py --python {sys.executable}\n"
            "    in a clone of tcl_d2: a redistribution from PyPI, pinned by its hash\n"
            "Without it, exported models alone can be used: tcl_d2.deploy, and tcl-d2 segment --onnx",
            name="detectron2",
        )
