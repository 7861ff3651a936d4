"""Bring PASCAL VOC 2012 into $DETECTRON2_DATASETS/VOC2012, for zeroshot_voc_val, zeroshot_voc20_val and _train.

Only the images that have a segmentation are taken. Can be repeated and interrupted.

    tcl-d2 prepare voc --download
    tcl-d2 prepare voc --source ~/VOCtrainval_11-May-2012.tar
    tcl-d2 prepare voc --check
"""

import argparse

from ...data import preparation
from ...data.dataset_files import datasets_root, glob_files, read_ids


def prepare(args: argparse.Namespace) -> None:
    """Put the lists, the labels and the images that have one into place."""
    folder = datasets_root() / "VOC2012"
    lists = folder / "ImageSets/Segmentation"
    pattern = r"VOC2012/(?P<path>ImageSets/Segmentation/(train|val)\.txt|SegmentationClass/[^/]+\.png)"
    preparation.bring(args.source, pattern, folder)
    keys = {key for path in glob_files(lists, "*.txt") for key in read_ids(path)}
    preparation.bring(args.source, r"VOC2012/(?P<path>JPEGImages/[^/]+\.jpg)", folder, keys)


PREPARATION = preparation.Preparation(
    __doc__,
    prepare,
    benchmarks=("zeroshot_voc_val", "zeroshot_voc20_val", "zeroshot_voc20_train"),
    downloads=("VOCtrainval_11-May-2012.tar", "VOCdevkit"),
    page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    address="https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
)
