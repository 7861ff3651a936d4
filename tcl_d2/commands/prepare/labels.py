"""Draw COCO's instance annotations as label maps to train on: a folder that DATASETS.TRAIN takes."""

import argparse
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ...data import preparation
from ...data.benchmarks.annotations import INSTANCE_KEYS, group_by_image, read_annotation_file
from ...utils.errors import one_message
from ...utils.files import check_shared_memory, digest_file, path_within, replacing
from ...utils.locks import locked_folder
from ...words.files import Source, check_class_words
from ...words.parsing import BACKGROUND
from .coco import Job, draw_label

IGNORED = 255  # of a folder that is a dataset, see register_benchmark_folder


def main(args: argparse.Namespace) -> None:
    """Draw the label maps that are not there yet."""
    with one_message():
        check_shared_memory(preparation.SHARED_MEMORY)
        content = read_annotation_file(args.annotations, INSTANCE_KEYS)
        classes = class_by_category(content["categories"], not args.ignore_unlabeled, args.annotations)
        with locked_folder(args.output, "preparation of labels", "--output"):
            prepare(args, group_by_image(content), classes)


def class_by_category(categories: list[dict], background: bool, source: Path) -> dict[int | None, str]:
    """Return the names of the classes by category ID, in the order of the label values; the background's ID is None.

    Raises:
        ValueError: two categories have one name, or there are too many for a folder of labels.
    """
    categories = sorted(categories, key=lambda category: category["id"])
    classes = {None: BACKGROUND} if background else {}
    classes |= {category["id"]: re.sub(r"\s*[,;]\s*", " ", category["name"]).strip() for category in categories}
    check_class_words([[name] for name in classes.values()], Source(str(source)))
    if len(classes) > IGNORED:
        raise ValueError(
            f"{source} has {len(classes)} classes; expected at most {IGNORED}, which 8 bits can tell apart"
        )
    return classes


def prepare(args: argparse.Namespace, jobs: list[Job], classes: Mapping[int | None, str]) -> None:
    """Draw the labels and link the images, then list the classes, without which the folder is no dataset."""
    # Labels that were drawn otherwise must not stay
    rest = "ignored" if args.ignore_unlabeled else "the background"
    source = f"{digest_file(args.annotations)}, pixels of no instance: {rest}\n"
    path = args.output / "source.txt"
    if path.exists() and path.read_text() != source:
        raise ValueError(
            f"--output '{args.output}' has labels of other annotations or options: delete it, or give another folder"
        )
    with replacing(path) as unfinished:
        unfinished.write_text(source)

    # An image without instances teaches nothing where other pixels are ignored
    if args.ignore_unlabeled:
        jobs = [(image, instances) for image, instances in jobs if instances]
    values = {key: value for value, key in enumerate(classes)}
    preparation.convert(partial(draw, args=args, values=values), jobs, args.processes, "drawing instances")

    path = args.output / "classes.txt"
    if not path.exists():  # it may have further words by now
        with replacing(path) as unfinished:
            unfinished.write_text("".join(f"{name}\n" for name in classes.values()), encoding="utf-8")
    print(f"{args.output}: {len(jobs)} images with labels of {len(classes)} classes, for DATASETS.TRAIN")


def draw(job: Job, args: argparse.Namespace, values: Mapping[int | None, int]) -> None:
    """Draw an image's label map and link the image, unless that is done."""
    image, instances = job
    name = image["file_name"]
    picture = path_within(args.images, name, args.annotations)
    if not picture.exists():
        raise FileNotFoundError(f"no image {picture}")

    instances = [{**instance, "category_id": values[instance["category_id"]]} for instance in instances]
    label = path_within(args.output / "labels", name, args.annotations).with_suffix(".png")
    draw_label((image, instances), picture, label, np.uint8(IGNORED if args.ignore_unlabeled else 0))

    link = args.output / "images" / name
    if not (link.exists() and link.samefile(picture)):
        with replacing(link) as unfinished:
            unfinished.symlink_to(picture.resolve())
