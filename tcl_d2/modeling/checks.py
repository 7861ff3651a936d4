"""Checks of a configuration before anything is built."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ..config.keys import missing_keys
from .dense_clip.heads import check_dense_head
from .refiners.build import build_refiner
from .segmentor.base import ZeroShotSegmentor, check_images


def check_meta_architecture(cfg: CfgNode) -> None:
    """Check that a configuration is for a zero-shot segmentor; Detectron2's defaults alone are for a detector.

    Raises:
        ValueError: MODEL.META_ARCHITECTURE, the dense head or the refiner is unknown, or keys of TCL are missing.
        RuntimeError: the refiner needs a package that is not installed.
    """
    segmentors = sorted(name for name, model in META_ARCH_REGISTRY if issubclass(model, ZeroShotSegmentor))
    if cfg.MODEL.META_ARCHITECTURE not in segmentors:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}', which is no zero-shot segmentor; expected "
            f"one of {', '.join(segmentors)}. Give a config file, such as shapes/tcl.yaml (the small world) or "
            "tcl.yaml (the paper's)"
        )

    if missing := missing_keys(cfg):
        raise ValueError(
            f"the configuration has no {missing[0]}: another plugin has replaced what add_tcl_config added. Call "
            "add_tcl_config after it, which adds what is missing"
        )

    check_images(cfg)
    check_dense_head("MODEL.DENSE_CLIP.HEAD", cfg.MODEL.DENSE_CLIP.HEAD)
    check_dense_head("MODEL.TCL.KP_HEAD", cfg.MODEL.TCL.KP_HEAD)
    build_refiner(cfg)


def check_device(name: str) -> None:
    """Check that torch can compute on a device; ValueError says what to give for MODEL.DEVICE."""
    count = num_devices(name)
    if not count:
        raise ValueError(f"MODEL.DEVICE is {name}, but torch finds no GPU for it: add MODEL.DEVICE cpu")
    if (torch.device(name).index or 0) >= count:
        raise ValueError(f"MODEL.DEVICE is {name}, but the devices of its kind are 0 to {count - 1}")


def num_devices(name: str) -> int:
    """Return how many devices there are of the kind of cpu, cuda:1, mps, xpu, ...; ValueError for an unknown one."""
    try:
        module = torch.get_device_module(torch.device(name).type)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE is '{name}', which torch does not know: give cpu, cuda or cuda:N") from None
    is_available = getattr(module, "is_available", lambda: True)  # which torch.mps has not always had
    return module.device_count() if is_available() else 0
