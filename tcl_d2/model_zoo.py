"""The configs that come with the project, and their models by name: Detectron2's `model_zoo` of this project."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from .assets import get_config_file
from .checkpoint import TCLCheckpointer
from .config import load_config

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

# The config that names the trained weights of a config.
_TRAINED = {
    "shapes/tcl.yaml": "shapes/trained.yaml",
    "shapes/trained.yaml": "shapes/trained.yaml",
    "tcl.yaml": "eval/official.yaml",
    "eval/official.yaml": "eval/official.yaml",
    "eval/pamr.yaml": "eval/official.yaml",
    "eval/no_pamr.yaml": "eval/official.yaml",
}


def get_checkpoint_url(config_path: str) -> str:
    """Return the address or path of the weights that were trained with a config.

    Args:
        config_path: its name below configs/, such as "shapes/tcl.yaml".

    Raises:
        FileNotFoundError: there is no config of this name.
        ValueError: there are no trained weights for it; lists the configs that have some.
    """
    get_config_file(config_path)
    if config_path not in _TRAINED:
        raise ValueError(f"there are no trained weights for '{config_path}', only for {', '.join(sorted(_TRAINED))}")
    return load_config(_TRAINED[config_path]).MODEL.WEIGHTS


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """Return a config that comes with the project.

    Args:
        config_path: its name below configs/, such as "shapes/tcl.yaml".
        trained: whether MODEL.WEIGHTS becomes the trained weights, see get_checkpoint_url, or stays as in the file.

    Raises:
        FileNotFoundError, ValueError: as get_checkpoint_url.
    """
    cfg = load_config(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build the model of a config that comes with the project, in training mode, with the weights of MODEL.WEIGHTS.

    Args:
        config_path: its name below configs/, such as "shapes/tcl.yaml".
        trained: whether it gets the trained weights, see get_checkpoint_url.
        device: in place of the config's; None: the CPU where torch finds no GPU.

    Raises:
        FileNotFoundError, ValueError: as get_checkpoint_url, or the weights cannot be read.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device

    model = build_model(cfg)
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
