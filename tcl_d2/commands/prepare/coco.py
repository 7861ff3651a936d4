"""Bring COCO's validation images and COCO-Stuff's maps into $DETECTRON2_DATASETS/coco.

For zeroshot_coco_object_val and zeroshot_coco_stuff_val, which read the same maps. Can be repeated and interrupted.

    tcl-d2 prepare coco --source ~/val2017.zip ~/stuffthingmaps_trainval2017.zip
    tcl-d2 prepare coco --check

COCO-Object can also be drawn from instances_val2017.json, where COCO-Stuff's maps are not at hand. If they are, the
benchmark reads the maps, and this command says how much the two differ:

    tcl-d2 prepare coco --from-instances --source ~/val2017.zip ~/annotations_trainval2017.zip
"""

import argparse
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from ...data import preparation
from ...data.dataset_files import datasets_root, glob_files
from ...data.labels import LabelMapper

OBJECT, STUFF = "zeroshot_coco_object_val", "zeroshot_coco_stuff_val"
UNLABELED = 255  # as in COCO-Stuff's maps, where a category's value is its ID - 1


def draw(image_id: int, coco: COCO, folder: Path) -> None:
    """Draw an image's things as COCO-Stuff numbers them, unless that is done.

    Crowds come first, then large things before small ones.

    Args:
        image_id: of the image.
        coco: the annotations.
        folder: for the label map.
    """
    target = folder / f"{image_id:012d}.png"
    if preparation.is_whole(target):
        return

    image = coco.imgs[image_id]
    label = np.full((image["height"], image["width"]), UNLABELED, np.uint8)
    instances = sorted(coco.imgToAnns[image_id], key=lambda instance: (not instance["iscrowd"], -instance["area"]))
    for instance in instances:
        label[coco.annToMask(instance) == 1] = instance["category_id"] - 1
    preparation.save_label(label, target)


def draw_all(folder: Path, processes: int) -> None:
    """Draw the things of all images from instances_val2017.json; FileNotFoundError where it is missing."""
    annotations = folder / "annotations/instances_val2017.json"
    if not annotations.is_file():
        raise FileNotFoundError(f"no file {annotations}")
    with redirect_stdout(StringIO()):  # pycocotools prints its progress
        coco = COCO(str(annotations))
    draw_image = partial(draw, coco=coco, folder=folder / "instancemaps/val2017")
    preparation.convert(draw_image, sorted(coco.imgs), processes, "drawing instances")


def compare(path: Path) -> np.ndarray:
    """Compare a map that was drawn from instances with COCO-Stuff's.

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
    """Put images and maps into place, and draw maps from instances where that is asked for."""
    folder = datasets_root() / "coco"
    preparation.bring(args.source, r"(?P<path>val2017/\d+\.jpg)", folder)
    preparation.bring(args.source, r"(?P<path>val2017/\d+\.png)", folder / "stuffthingmaps")
    if args.from_instances:
        preparation.bring(args.source, r"(?P<path>instances_val2017\.json)", folder / "annotations")
        draw_all(folder, args.processes)
        if (folder / "stuffthingmaps/val2017").is_dir():
            print_difference(folder, args.processes)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    downloads = ("val2017.zip", "stuffthingmaps_trainval2017.zip", "annotations_trainval2017.zip")
    page = "https://cocodataset.org/#download and https://github.com/nightrome/cocostuff"
    parser = preparation.arguments(__doc__, downloads, page)
    parser.add_argument("--from-instances", action="store_true", help="draw COCO-Object from instances_val2017.json")
    return parser


def main(args: argparse.Namespace) -> None:
    """Prepare the datasets, or check them alone; exit with 1 if they are not whole.

    Args:
        args: of `argument_parser`.
    """
    preparation.run(args, prepare, (OBJECT,) if args.from_instances else (OBJECT, STUFF))
