"""Draw LVIS v1's validation annotations as label maps into $DETECTRON2_DATASETS/lvis, for zeroshot_lvis_val."""

import argparse
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from detectron2.data import MetadataCatalog

from ...data import preparation
from ...data.benchmarks.annotations import check_categories, group_by_image, read_annotation_file
from ...data.dataset_files import datasets_root
from ...utils.files import path_within, replacing
from ..options.prepare.releases import LVIS
from .coco import Job, draw_label
from .preparation import Preparation

NAME = "zeroshot_lvis_val"
ANNOTATIONS = "lvis_v1_val.json"
KEYS = {
    "images": ("id", "coco_url", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "area", "segmentation"),
}


def image_key(image: dict) -> str:
    """Return where COCO keeps an image: 'val2017/000000397133'."""
    return "/".join(PurePosixPath(image["coco_url"]).with_suffix("").parts[-2:])


def draw(job: Job, folder: Path) -> None:
    """Draw the category IDs of an image's instances, 16 bits, 0 elsewhere."""
    key = image_key(job[0])
    target = path_within(folder / "lvis/semantic", f"{key}.png", ANNOTATIONS)
    draw_label(job, folder / f"coco/{key}.jpg", target, np.uint16(0))


def prepare(args: argparse.Namespace) -> None:
    """Put annotations and images into place, draw the label maps, and list the images."""
    folder = datasets_root() / "lvis"

    # Bring the annotations, and the images that have any
    path = folder / ANNOTATIONS
    preparation.bring(args.source, r"(?P<path>lvis_v1_val\.json)", folder)
    content = read_annotation_file(path, KEYS)
    check_categories(content, dict(enumerate(MetadataCatalog.get(NAME).stuff_classes, start=1)), path)
    content["images"].sort(key=image_key)
    keys = list(map(image_key, content["images"]))
    stems = {PurePosixPath(key).name for key in keys}
    preparation.bring(args.source, r"(?P<path>(train|val)2017/\d+\.jpg)", datasets_root() / "coco", stems)

    # Draw the label maps, and list the images
    draw_image = partial(draw, folder=datasets_root())
    preparation.convert(draw_image, group_by_image(content), args.processes, "drawing instances")
    with replacing(folder / "semantic/val.txt") as unfinished:
        unfinished.write_text("".join(f"{key}\n" for key in keys))


PREPARATION = Preparation(LVIS, prepare)
