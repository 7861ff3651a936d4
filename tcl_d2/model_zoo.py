"""The configs that come with the project, and their models by name: Detectron2's `model_zoo` of this project."""

from typing import Any, cast

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from .assets import get_config_file
from .checkpoint import TCLCheckpointer
from .config import load_config

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

# The config that names the trained weights of a config.
_TRAINED = {
    "shapes/tcl.py": "shapes/trained.yaml",
    "shapes/tcl.yaml": "shapes/trained.yaml",
    "shapes/trained.yaml": "shapes/trained.yaml",
    "tcl.yaml": "eval/official.yaml",
    "eval/official.yaml": "eval/official.yaml",
    "eval/pamr.yaml": "eval/official.yaml",
    "eval/no_pamr.yaml": "eval/official.yaml",
    "ablations/without_kp.yaml": "eval/official.yaml",
    "ablations/without_pamr.yaml": "eval/official.yaml",
}


def get_checkpoint_url(config_path: str) -> str:
    """Return the address or path of the weights that were trained with a config, such as "shapes/tcl.yaml".

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it has no trained weights; lists the configs that have some.
    """
    get_config_file(config_path)
    if config_path not in _TRAINED:
        raise ValueError(f"there are no trained weights for '{config_path}', only for {', '.join(sorted(_TRAINED))}")
    return load_config(_TRAINED[config_path]).MODEL.WEIGHTS


def get_config(config_path: str, trained: bool = False) -> CfgNode | DictConfig:
    """Return a config of the project, also a LazyConfig (.py), with its trained weights if asked for."""
    path = get_config_file(config_path)
    weights = get_checkpoint_url(config_path) if trained else None
    if path.endswith(".py"):
        cfg: Any = LazyConfig.load(path)
        if weights is not None:
            cfg.train.init_checkpoint = weights
        return cfg

    return load_config(path, [] if weights is None else ["MODEL.WEIGHTS", weights])


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build the model of a config of the project, in training mode, with its weights or the trained ones.

    Args:
        device: instead of the config's; None: the CPU if there is no GPU.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"

    # Build it on the device
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, weights = cast(nn.Module, instantiate(cfg.model)), cfg.train.init_checkpoint
        model.to(device or cfg.train.device)

    TCLCheckpointer(model).load(weights)
    return model
