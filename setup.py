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
    author="tcl_d2 developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["open-vocabulary semantic segmentation", "zero-shot", "CLIP", "Detectron2", "TCL"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["tcl_d2", "tcl_d2.*"]), "tcl_d2.assets.configs"],
    package_dir={"tcl_d2.assets.configs": "configs"},
    package_data={
        "tcl_d2": ["py.typed"],
        "tcl_d2.assets": ["*.json", "*.png", "*/*"],
        "tcl_d2.assets.configs": ["**/*.yaml", "**/*.py"],
    },
    entry_points={"console_scripts": ["tcl-d2 = tcl_d2.commands:main"]},
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
        "densecrf": ["pydensecrf2"],  # compiled when it is installed, so not in "dev"
        "supervision": ["supervision"],
        "wandb": ["wandb"],
        "groupvit": ["transformers>=4.57"],
        "export": ["onnx", "onnx-ir", "onnxscript", "onnxruntime"],
        "docs": ["mkdocs>=1.6.1,<2", "mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1.0"],
        # setuptools from 70.1 on builds a wheel by itself, as a test does. From 82 on it has no pkg_resources, without
        # which detectron2.model_zoo cannot be imported.
        # opencv-python and not opencv-python-headless: lvis brings it, and both write into one folder.
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "selenium",
            "opencv-python",
            "setuptools>=70.1,<82",
            "supervision",
            "transformers>=4.57",
            "wandb",
            "onnx",
            "onnx-ir",
            "onnxscript",
            "onnxruntime",
        ],
    },
)
