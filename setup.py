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
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["tcl_d2", "tcl_d2.*"]), "tcl_d2.assets.configs"],
    package_dir={"tcl_d2.assets.configs": "configs"},
    package_data={
        "tcl_d2": ["py.typed", "**/*.pyi"],
        "tcl_d2.assets": ["*.json", "*.png", "*/*"],
        "tcl_d2.assets.configs": ["**/*.yaml", "**/*.py"],
    },
    entry_points={"console_scripts": ["tcl-d2 = tcl_d2.commands:main"]},
    python_requires=">=3.11",
    # The lower bounds are tested (tools/lowest.txt); an upper one stands where a break is announced or usual.
    install_requires=[
        "torch>=2.11.0",
        "torchvision>=0.26.0",
        "open_clip_torch>=3.0.0,<5",
        "timm>=1.0.31",
        "webdataset>=1.0.2",
        "braceexpand>=0.1.7",
        "huggingface_hub>=2.4.0,<3",
        "fvcore>=0.1.5.post20221221",
        "lazy_loader>=0.4",
        "iopath>=0.1.10",
        "pycocotools>=2.0.8",
        "lvis>=0.5.3",
        "cityscapesscripts>=2.2.4",
        "numpy>=1.26.4",
        "scipy>=1.12.0",
        "Pillow>=11.0.0",
        "safetensors>=0.8.0",
        "PyYAML>=6.0.1",
        "tabulate>=0.9.0",
        "tqdm>=4.66.3",
        "tensorboard>=2.16.2",
        "matplotlib>=3.8.4",
    ],
    extras_require={
        "demo": ["gradio>=6.31.0,<7", "fastapi>=0.164.0"],  # fastapi, on which gradio is built: limits of requests
        "densecrf": ["pydensecrf2"],  # compiled when it is installed, so not in "dev"
        "ray": ["ray[data]>=2.60.0,<3", "pyarrow>=17.0.0"],
        "supervision": ["supervision>=0.25.0"],
        "wandb": ["wandb>=0.31.0"],
        "groupvit": ["transformers>=5.24.0,<6"],
        "tips": ["transformers>=5.24.0,<6", "sentencepiece>=0.2.3"],
        "export": ["onnx>=1.20.0", "onnx-ir>=1.0.0", "onnxscript>=0.7.0", "onnxruntime>=1.25.0"],
        "docs": ["mkdocs>=1.6.1,<2", "mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1.0"],
        # setuptools from 70.1 on builds a wheel by itself, as a test does. From 82 on it has no pkg_resources, without
        # which detectron2.model_zoo cannot be imported.
        # opencv-python and not opencv-python-headless: lvis brings it, and both write into one folder.
        "dev": [
            "pytest>=9.2.0",
            "pytest-xdist>=3.8.0",
            "hypothesis>=6.170.17",
            "ruff",
            "basedpyright",
            "selenium",
            "opencv-python>=4.9.0.80",
            "setuptools>=70.1,<82",
            "ray[data]>=2.60.0,<3",
            "pyarrow>=17.0.0",
            "supervision>=0.25.0",
            "transformers>=5.24.0,<6",
            "wandb>=0.31.0",
            "onnx>=1.20.0",
            "onnx-ir>=1.0.0",
            "onnxscript>=0.7.0",
            "onnxruntime>=1.25.0",
        ],
    },
)
