"""Package metadata.

Detectron2 is required too, but it is not on PyPI under its name: `make` installs it, or install it as its own
documentation says (README.md, Installation).
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="tcl_d2",
    version=re.search(r'__version__ = "(.+)"', (HERE / "tcl_d2/version.py").read_text())[1],
    description="TCL (text-grounded contrastive learning, CVPR 2023) as a Detectron2 plugin",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tcl_d2", "tcl_d2.*"]),
    package_data={"tcl_d2.assets": ["*.json", "*/*"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "open_clip_torch>=3.0",
        "timm>=1.0",
        "webdataset>=0.2.86",
        "braceexpand",
        "huggingface_hub",
        "fvcore",
        "iopath",
        "pycocotools",
        "lvis",
        "cityscapesscripts",
        "numpy",
        "scipy",
        "Pillow",
        "safetensors",
        "PyYAML",
        "tabulate",
        "tqdm",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={
        "demo": ["gradio>=6"],
        # opencv-python and not opencv-python-headless: lvis brings it, and both write into one folder.
        "dev": ["pytest", "hypothesis", "ruff", "selenium", "opencv-python"],
    },
)
