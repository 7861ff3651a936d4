"""The card: what a checkpoint says of itself, and whether a training may go on from it."""

import logging
from collections.abc import Mapping
from typing import Any

import detectron2
import open_clip
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ..modeling import GroupViT
from ..modeling.encoders.clip_loading import has_quick_gelu, is_file
from ..version import __version__
from .model_config import read_yaml

logger = logging.getLogger(__name__)


def make_card(cfg: CfgNode) -> dict[str, str]:
    """Describe a checkpoint: the model, its CLIP or GroupViT, data, versions, and the whole configuration (YAML)."""
    return {
        "model": cfg.MODEL.META_ARCHITECTURE,
        **describe_encoder(cfg, "random weights"),
        "trained on": ", ".join(cfg.DATASETS.TRAIN),
        "versions": f"tcl_d2 {__version__}, torch {torch.__version__}, detectron2 {detectron2.__version__}",
        "configuration": cfg.dump(),
    }


def describe_encoder(cfg: CfgNode, no_source: str) -> dict[str, str]:
    """Describe the CLIP or GroupViT of a configuration; `no_source` stands for weights without a name."""
    if is_groupvit(cfg):
        return {"GroupViT": cfg.MODEL.GROUPVIT.WEIGHTS or no_source}
    return {"CLIP": f"{cfg.MODEL.CLIP.NAME}, {cfg.MODEL.CLIP.PRETRAINED or no_source}"}


def is_groupvit(cfg: CfgNode) -> bool:
    """Return whether a configuration's model is a GroupViT, which has no CLIP."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and issubclass(META_ARCH_REGISTRY.get(name), GroupViT)


def carried_config(checkpoint: Mapping[str, Any], path: str) -> CfgNode | None:
    """Return the configuration on a checkpoint's card, None without one; ValueError names a damaged file."""
    card = checkpoint.get("card") or {}
    if "configuration" not in card:
        return None
    try:
        return CfgNode(read_yaml(card["configuration"]))
    except (AssertionError, RecursionError, ValueError) as error:
        raise ValueError(f"'{path}' has a damaged card: its configuration cannot be read: {error}") from None


def carried_activation(checkpoint: Mapping[str, Any], path: str) -> str:
    """Return the activation of the CLIP that a checkpoint was trained with; "" where it does not say."""
    if activation := (checkpoint.get("card") or {}).get("activation"):
        return activation

    # Cards of older versions: what the configuration's names say
    cfg = carried_config(checkpoint, path) or {}
    name, pretrained = find_value(cfg, "MODEL.CLIP.NAME"), str(find_value(cfg, "MODEL.CLIP.PRETRAINED") or "")
    if name not in open_clip.list_models() or is_file(pretrained):
        return ""
    return "QuickGELU" if has_quick_gelu(name, pretrained) else "GELU"


def check_resume(path: str, checkpoint: Mapping[str, Any], card: Mapping[str, str]) -> None:
    """Check that a training can go on from a checkpoint; warn of settings that make it another training from there on.

    Raises:
        ValueError: the losses differ, or the checkpoint is beyond SOLVER.MAX_ITER.
    """
    saved_cfg = carried_config(checkpoint, path)
    if saved_cfg is None:
        return
    cfg = CfgNode.load_cfg(card["configuration"])
    _check_losses(cfg, saved_cfg, path)
    done, max_iter = checkpoint["iteration"] + 1, cfg.SOLVER.MAX_ITER
    if done > max_iter:
        raise ValueError(
            f"--resume: '{path}' has {done} iterations, more than SOLVER.MAX_ITER {max_iter}: raise it, or give "
            "another OUTPUT_DIR"
        )
    if done == max_iter:
        logger.info("Nothing left to train: '%s' has all of SOLVER.MAX_ITER %d iterations", path, done)

    # Warn of what changes from here on
    consequences = {
        "SOLVER.IMS_PER_BATCH": "the data goes on at about the same place: some samples come twice or not at all",
        "SEED": "the samples and random choices from here on are those of the new seed",
    }
    for key, consequence in consequences.items():
        value, saved_value = find_value(cfg, key), find_value(saved_cfg, key)
        if value != saved_value:
            logger.warning("%s is %s, but was %s: %s", key, value, saved_value, consequence)


def _check_losses(cfg: CfgNode, saved_cfg: Mapping, path: str) -> None:
    """Raise a ValueError if the losses, which have states of the optimizer by their order, are others than saved."""
    if is_groupvit(cfg):
        keys = "MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS"
        losses, saved = ("a multi-label loss" if find_value(node, keys) else "none" for node in (cfg, saved_cfg))
    elif cfg.MODEL.META_ARCHITECTURE == "DenseCLIP":
        keys = "MODEL.DENSE_CLIP.HEAD and DINOISER.FIND_OBJECTS"
        names = ("MODEL.DENSE_CLIP.HEAD", "MODEL.DENSE_CLIP.DINOISER.FIND_OBJECTS")
        losses, saved = ([find_value(node, name) for name in names] for node in (cfg, saved_cfg))
    else:
        keys = "MODEL.TCL.LOSS_HEADS and EXTRA_LOSS_HEADS"
        losses, saved = map(_loss_heads, (cfg, saved_cfg))
    if losses != saved:
        raise ValueError(
            f"--resume: {keys} say {losses}, but '{path}' was trained with {saved}: the optimizer's states go by the "
            "order of the losses' parameters, and would go to others. Resume with the same losses, or begin a training "
            f"from these weights: another OUTPUT_DIR, and MODEL.WEIGHTS {path}"
        )


def _loss_heads(cfg: Mapping) -> list[str]:
    keys = ("MODEL.TCL.LOSS_HEADS", "MODEL.TCL.EXTRA_LOSS_HEADS")
    return [head for key in keys for head in find_value(cfg, key) or ()]


def find_value(cfg: Mapping, key: str) -> Any:
    """Return the value of a key such as "SOLVER.MAX_ITER"; None where there is none."""
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
