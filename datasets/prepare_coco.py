#!/usr/bin/env python
"""Brings COCO's validation images and COCO-Stuff's maps into $DETECTRON2_DATASETS/coco.

For zeroshot_coco_object_val and zeroshot_coco_stuff_val, which read the same maps. Can be repeated and interrupted.

    python datasets/prepare_coco.py --source ~/val2017.zip ~/stuffthingmaps_trainval2017.zip
    python datasets/prepare_coco.py --check

COCO-Object can also be drawn from instances_val2017.json, where COCO-Stuff's maps are not at hand (with them, the
benchmark reads those, and this says how much the two differ):

    python datasets/prepare_coco.py --from-instances --source ~/val2017.zip ~/annotations_trainval2017.zip
"""

import argparse
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from tcl_d2.data import preparation
from tcl_d2.data.benchmarks import datasets_root
from tcl_d2.data.labels import LabelMapper

OBJECT, STUFF = "zeroshot_coco_object_val", "zeroshot_coco_stuff_val"
NOTHING = 255  # as in COCO-Stuff's maps, which number a category by its ID - 1


def draw(image_id: int, coco: COCO, folder: Path) -> None:
    """Writes an image's things as COCO-Stuff numbers them: crowds first, then large ones before small ones."""
    target = folder / f"{image_id:012d}.png"
    if preparation.is_whole(target):
        return
    label = np.full((coco.imgs[image_id]["height"], coco.imgs[image_id]["width"]), NOTHING, np.uint8)
    for one in sorted(coco.imgToAnns[image_id], key=lambda one: (not one["iscrowd"], -one["area"])):
        label[coco.annToMask(one) == 1] = one["category_id"] - 1
    preparation.save_label(label, target)


def draw_all(folder: Path, processes: int) -> None:
    annotations = folder / "annotations/instances_val2017.json"
    if not annotations.is_file():
        raise FileNotFoundError(f"no file {annotations}")
    with redirect_stdout(StringIO()):  # pycocotools' own progress
        coco = COCO(str(annotations))
    draw_one = partial(draw, coco=coco, folder=folder / "instancemaps/val2017")
    preparation.convert(draw_one, sorted(coco.imgs), processes, "drawing instances")


def compare(path: Path) -> np.ndarray:
    """Counts of an image's pixels: the same by both, another object, an object in COCO-Stuff's alone, in `path`'s."""
    rule = LabelMapper.of(OBJECT)
    drawn = rule.read(str(path))
    stuff_path = str(path).replace("instancemaps", "stuffthingmaps")
    stuff = rule.read(stuff_path)
    kinds = [stuff == drawn, (stuff != drawn) & (stuff > 0) & (drawn > 0), (stuff > 0) & (drawn == 0)]
    counts = [int(kind.sum()) for kind in kinds]
    return np.array([*counts, stuff.size - sum(counts)])


def say_difference(folder: Path, processes: int) -> None:
    paths = sorted((folder / "instancemaps/val2017").glob("*.png"))
    counts = sum(preparation.convert(compare, paths, processes, "comparing"))
    same, other, stuff, drawn = 100 * counts / counts.sum()
    print(
        f"COCO-Object by instances against COCO-Stuff's maps: {same:.2f} % of pixels agree, {other:.2f} % are another "
        f"object, {stuff:.2f} % are an object in COCO-Stuff's maps alone, {drawn:.2f} % in instances alone. {OBJECT} "
        "reads COCO-Stuff's maps as long as they are there."
    )


def prepare(args: argparse.Namespace) -> None:
    folder = datasets_root() / "coco"
    preparation.bring(args.source, r"(?P<path>val2017/\d+\.jpg)", folder)
    preparation.bring(args.source, r"(?P<path>val2017/\d+\.png)", folder / "stuffthingmaps")
    if args.from_instances:
        preparation.bring(args.source, r"(?P<path>instances_val2017\.json)", folder / "annotations")
        draw_all(folder, args.processes)
        if (folder / "stuffthingmaps/val2017").is_dir():
            say_difference(folder, args.processes)


if __name__ == "__main__":
    downloads = ("val2017.zip", "stuffthingmaps_trainval2017.zip", "annotations_trainval2017.zip")
    parser = preparation.arguments(__doc__, downloads)
    parser.add_argument("--from-instances", action="store_true", help="draw COCO-Object from instances_val2017.json")
    args = parser.parse_args()
    preparation.run(args, prepare, (OBJECT,) if args.from_instances else (OBJECT, STUFF))
