"""The card: what a checkpoint says of itself, and whether a training may go on from it."""

import logging
from collections.abc import Mapping
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode

from ..version import __version__

logger = logging.getLogger(__name__)


def make_card(cfg: CfgNode) -> dict[str, str]:
    """Describe a checkpoint: the model, its CLIP, data, versions, and the whole configuration (YAML)."""
    return {
        "model": cfg.MODEL.META_ARCHITECTURE,
        "CLIP": f"{cfg.MODEL.CLIP.NAME}, {cfg.MODEL.CLIP.PRETRAINED or 'random weights'}",
        "trained on": ", ".join(cfg.DATASETS.TRAIN),
        "versions": f"tcl_d2 {__version__}, torch {torch.__version__}, detectron2 {detectron2.__version__}",
        "configuration": cfg.dump(),
    }


def carried_config(checkpoint: Mapping[str, Any], path: str) -> CfgNode | None:
    """Return the configuration on a checkpoint's card; None where it carries none.

    Args:
        checkpoint: as read_checkpoint gives it.
        path: of its file.

    Raises:
        ValueError: names the file, whose card is damaged.
    """
    card = checkpoint.get("card") or {}
    if "configuration" not in card:
        return None
    try:
        return CfgNode(yaml.safe_load(card["configuration"]))
    except (yaml.YAMLError, AssertionError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' has a damaged card, whose configuration is no YAML of keys: {error}") from None


def check_resume(path: str, checkpoint: Mapping[str, Any], card: Mapping[str, str]) -> None:
    """Compare a training with the checkpoint from which it is to go on; warns of what makes it another from here on.

    Args:
        path: of the checkpoint's file.
        checkpoint: as read_checkpoint gives it.
        card: of the training.

    Raises:
        ValueError: the loss heads differ, or the checkpoint is beyond SOLVER.MAX_ITER.
    """
    saved = carried_config(checkpoint, path)
    if saved is None:
        return
    cfg, done = CfgNode.load_cfg(card["configuration"]), checkpoint["iteration"] + 1

    # What cannot go on
    heads, saved_heads = list(cfg.MODEL.TCL.LOSS_HEADS), list(_value(saved, "MODEL.TCL.LOSS_HEADS") or ())
    if heads != saved_heads:
        raise ValueError(
            f"--resume: MODEL.TCL.LOSS_HEADS is {heads}, but '{path}' was trained with {saved_heads}: the optimiser's "
            "states, which go by the order of the parameters, would be those of others. Resume with the same heads, or "
            f"begin a training from these weights: another OUTPUT_DIR, and MODEL.WEIGHTS {path}"
        )
    if done > cfg.SOLVER.MAX_ITER:
        raise ValueError(
            f"--resume: '{path}' has {done} iterations, more than SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: raise it, or "
            "give another OUTPUT_DIR"
        )

    # What goes on in another way
    consequences = {
        "SOLVER.IMS_PER_BATCH": "the data goes on at about the same place: some samples come twice or not at all",
        "SEED": "the samples and random choices from here on are those of the new seed",
    }
    for key, consequence in consequences.items():
        if _value(cfg, key) != _value(saved, key):
            logger.warning("%s is %s, but was %s: %s", key, _value(cfg, key), _value(saved, key), consequence)
    if done == cfg.SOLVER.MAX_ITER:
        logger.info("Nothing left to train: '%s' has all of SOLVER.MAX_ITER %d iterations", path, done)


def _value(cfg: Mapping, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg.get(part) if isinstance(cfg, Mapping) else None
    return cfg
