#!/usr/bin/env python
"""Brings PASCAL VOC 2012 into $DETECTRON2_DATASETS/VOC2012, for zeroshot_voc_val, zeroshot_voc20_val and _train.

Only the images that have a segmentation are taken. Can be repeated and interrupted.

    python datasets/prepare_voc.py --source ~/VOCtrainval_11-May-2012.tar
    python datasets/prepare_voc.py --check
"""

import argparse

from tcl_d2.data import preparation
from tcl_d2.data.benchmarks import datasets_root

NAMES = ("zeroshot_voc_val", "zeroshot_voc20_val", "zeroshot_voc20_train")


def prepare(args: argparse.Namespace) -> None:
    folder = datasets_root() / "VOC2012"
    lists = folder / "ImageSets/Segmentation"
    pattern = r"VOC2012/(?P<path>ImageSets/Segmentation/(train|val)\.txt|SegmentationClass/[^/]+\.png)"
    preparation.bring(args.source, pattern, folder)
    keys = {key for path in lists.glob("*.txt") for key in path.read_text().split()}
    preparation.bring(args.source, r"VOC2012/(?P<path>JPEGImages/[^/]+\.jpg)", folder, keys)


if __name__ == "__main__":
    downloads = ("VOCtrainval_11-May-2012.tar", "VOCdevkit")
    preparation.run(preparation.arguments(__doc__, downloads).parse_args(), prepare, NAMES)
