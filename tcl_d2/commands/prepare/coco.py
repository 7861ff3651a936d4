"""Bring COCO's validation images and COCO-Stuff's maps into $DETECTRON2_DATASETS/coco."""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog

from ...data import preparation
from ...data.benchmarks.annotations import (
    check_categories,
    check_picture,
    draw_instances,
    group_by_image,
    read_annotation_file,
)
from ...data.dataset_files import datasets_root, glob_files
from ...data.labels import LabelMapper
from ...utils.files import path_within
from ..options.prepare.releases import COCO
from .preparation import Preparation

OBJECT, STUFF = "zeroshot_coco_object_val", "zeroshot_coco_stuff_val"
INSTANCES = "annotations/instances_val2017.json"
UNLABELED = 255  # as in COCO-Stuff's maps, where a category's value is its ID - 1
KEYS = {
    "images": ("id", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "area", "iscrowd", "segmentation"),
}


Job = tuple[dict, list[dict]]  # an image and its annotations


def draw(job: Job, folder: Path) -> None:
    """Draw an image's things with COCO-Stuff's values, unless that is done."""
    key = f"{job[0]['id']:0>12}"
    target = path_within(folder / "instancemaps/val2017", f"{key}.png", INSTANCES)
    draw_label(job, folder / f"val2017/{key}.jpg", target, np.uint8(UNLABELED), offset=-1)


def draw_label(job: Job, picture: Path, target: Path, unlabeled: np.unsignedinteger, offset: int = 0) -> None:
    """Draw the category IDs of an image's instances, plus an offset, over a value of its type, unless that is done."""
    image, instances = job
    if preparation.is_whole(target):
        return

    check_picture(image, picture)
    label = np.full((image["height"], image["width"]), unlabeled)
    draw_instances(label, instances, offset=offset)
    preparation.save_label(label, target)


def draw_all(folder: Path, processes: int) -> None:
    """Draw the things of all images from instances_val2017.json."""
    # The benchmark's rule has the value of each class
    metadata = MetadataCatalog.get(OBJECT)
    names = {value + 1: metadata.stuff_classes[k] for value, k in metadata.label_map.items() if k > 0}

    path = folder / INSTANCES
    content = read_annotation_file(path, KEYS)
    check_categories(content, names, path)
    preparation.convert(partial(draw, folder=folder), group_by_image(content), processes, "drawing instances")


def compare(path: Path) -> np.ndarray:
    """Compare a map drawn from instances with COCO-Stuff's.

    Returns:
        numbers of pixels: equal, two different objects, an object only in COCO-Stuff's map, only in the one at `path`.
    """
    mapper = LabelMapper.of(OBJECT)
    drawn = mapper.read(str(path))
    stuff = mapper.read(str(path).replace("instancemaps", "stuffthingmaps"))
    return np.array(
        [
            (stuff == drawn).sum(),
            ((stuff != drawn) & (stuff > 0) & (drawn > 0)).sum(),
            ((stuff > 0) & (drawn == 0)).sum(),
            ((stuff == 0) & (drawn > 0)).sum(),
        ]
    )


def print_difference(folder: Path, processes: int) -> None:
    """Print how far the maps that were drawn from instances differ from COCO-Stuff's."""
    paths = glob_files(folder, "instancemaps/val2017/*.png")
    counts = sum(preparation.convert(compare, paths, processes, "comparing"))
    same, other, only_stuff, only_drawn = 100 * counts / counts.sum()
    print(
        f"COCO-Object by instances against COCO-Stuff's maps: {same:.2f} % of pixels agree, {other:.2f} % are another "
        f"object, {only_stuff:.2f} % are an object in COCO-Stuff's maps alone, {only_drawn:.2f} % in instances alone. "
        f"{OBJECT} reads COCO-Stuff's maps as long as they are there."
    )


def prepare(args: argparse.Namespace) -> None:
    """Put images and maps into place, and draw maps from instances if asked to."""
    folder = datasets_root() / "coco"
    preparation.bring(args.source, r"(?P<path>val2017/\d+\.jpg)", folder)
    preparation.bring(args.source, r"(?P<path>val2017/\d+\.png)", folder / "stuffthingmaps")
    if STUFF not in args.benchmarks:
        preparation.bring(args.source, r"(?P<path>instances_val2017\.json)", folder / "annotations")
        draw_all(folder, args.processes)
        if (folder / "stuffthingmaps/val2017").is_dir():
            print_difference(folder, args.processes)


PREPARATION = Preparation(COCO, prepare)
