"""Bring PASCAL VOC 2012 into $DETECTRON2_DATASETS/VOC2012, for zeroshot_voc_val, zeroshot_voc20_val and _train."""

import argparse

from ...data import preparation
from ...data.dataset_files import datasets_root, glob_files, read_ids
from ..options.prepare.releases import VOC
from .preparation import Preparation


def prepare(args: argparse.Namespace) -> None:
    """Put the lists, the labels and the images that have one into place."""
    folder = datasets_root() / "VOC2012"
    lists = folder / "ImageSets/Segmentation"
    pattern = r"VOC2012/(?P<path>ImageSets/Segmentation/(train|val)\.txt|SegmentationClass/[^/]+\.png)"
    preparation.bring(args.source, pattern, folder)
    keys = {key for path in glob_files(lists, "*.txt") for key in read_ids(path)}
    preparation.bring(args.source, r"VOC2012/(?P<path>JPEGImages/[^/]+\.jpg)", folder, keys)


PREPARATION = Preparation(VOC, prepare)
