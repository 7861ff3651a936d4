"""Reproduce a published figure: bring the model and the dataset, evaluate, compare."""

import argparse

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from ..checkpoint.checkpointer import fetch_weights
from ..config import load_config
from ..modeling.checks import check_device
from ..runs.processes import launch
from ..utils.errors import expect, one_message
from . import train
from .prepare import voc


def main(args: argparse.Namespace) -> None:
    """Download what is missing and evaluate; exit with 1 if a result is not the one of TEST.EXPECTED_RESULTS."""
    with one_message(OSError, RuntimeError, ValueError):
        # The model first: its checks take seconds, the dataset's download many minutes
        cfg = load_config(args.config_file, args.opts)
        check_device(cfg.MODEL.DEVICE)
        META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).check_encoder(cfg)
        fetch_weights(cfg.MODEL.WEIGHTS)
        bring_voc()
    launch(train.main, args)


def bring_voc() -> None:
    """Download PASCAL VOC 2012 and bring it into place, unless all its validation images are there.

    Raises:
        OSError: it could not be downloaded.
        ValueError: it is not as its owners distribute it; what is wrong is printed.
    """
    name = "zeroshot_voc_val"
    try:
        num_images = len(DatasetCatalog.get(name))
    except FileNotFoundError:
        num_images = 0
    if num_images in MetadataCatalog.get(name).num_images:
        return

    is_right = voc.PREPARATION.run(voc.PREPARATION.release.argument_parser().parse_args(["--download"]))
    expect(is_right, "PASCAL VOC 2012", "not as its owners distribute it", "none of the problems above")
