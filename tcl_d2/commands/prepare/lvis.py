"""Draw LVIS v1's validation annotations as label maps into $DETECTRON2_DATASETS/lvis, for zeroshot_lvis_val.

Instances are painted large before small, as category IDs in 16-bit PNGs. Pixels that nobody annotated are 0, and are
ignored.
Images are COCO's (of train2017 and val2017), brought into $DETECTRON2_DATASETS/coco. Can be repeated and interrupted.

    tcl-d2 prepare lvis --source ~/lvis_v1_val.json.zip ~/train2017.zip ~/val2017.zip
    tcl-d2 prepare lvis --check
"""

import argparse
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from detectron2.data import MetadataCatalog
from lvis import LVIS

from ...data import preparation
from ...data.dataset_files import datasets_root
from ...utils.files import replacing

NAME = "zeroshot_lvis_val"


def read_annotations(path: Path) -> LVIS:
    """Read the annotations, and check their categories.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or has other categories than LVIS v1's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    annotations = LVIS(str(path))
    words = [annotations.cats[key]["name"].replace("_", " ") for key in sorted(annotations.cats)]
    if words != MetadataCatalog.get(NAME).stuff_classes:
        raise ValueError(f"{path} has {len(words)} categories that are not the 1,203 of LVIS v1")
    return annotations


def image_key(image: dict) -> str:
    """Return where COCO keeps an image: 'val2017/000000397133'."""
    return "/".join(PurePosixPath(image["coco_url"]).with_suffix("").parts[-2:])


def draw(image: dict, annotations: LVIS, folder: Path) -> None:
    """Draw the category IDs of an image's instances, 16 bits; 0 where there is none."""
    target = folder / f"{image_key(image)}.png"
    if preparation.is_whole(target):
        return
    label = np.zeros((image["height"], image["width"]), np.uint16)
    for instance in sorted(annotations.img_ann_map[image["id"]], key=lambda instance: -instance["area"]):
        label[annotations.ann_to_mask(instance) == 1] = instance["category_id"]
    preparation.save_label(label, target)


def prepare(args: argparse.Namespace) -> None:
    """Put annotations and images into place, draw the label maps, and list the images."""
    folder = datasets_root() / "lvis"

    # Bring the annotations, and the images that have any
    preparation.bring(args.source, r"(?P<path>lvis_v1_val\.json)", folder)
    annotations = read_annotations(folder / "lvis_v1_val.json")
    images = sorted(annotations.imgs.values(), key=image_key)
    stems = {PurePosixPath(image_key(image)).name for image in images}
    preparation.bring(args.source, r"(?P<path>(train|val)2017/\d+\.jpg)", datasets_root() / "coco", stems)

    # Draw the label maps, and list the images
    draw_image = partial(draw, annotations=annotations, folder=folder / "semantic")
    preparation.convert(draw_image, images, args.processes, "drawing instances")
    with replacing(folder / "semantic/val.txt") as unfinished:
        unfinished.write_text("".join(f"{image_key(image)}\n" for image in images))


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    downloads = ("lvis_v1_val.json.zip", "train2017.zip", "val2017.zip")
    return preparation.arguments(
        __doc__, downloads, "https://www.lvisdataset.org/dataset and https://cocodataset.org/#download"
    )


def main(args: argparse.Namespace) -> None:
    """Prepare the dataset, or check it alone; exit with 1 if it is not whole.

    Args:
        args: of `argument_parser`.
    """
    preparation.run(args, prepare, (NAME,))
