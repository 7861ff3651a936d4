#!/usr/bin/env python
"""Brings Cityscapes' validation set into $DETECTRON2_DATASETS/cityscapes, for zeroshot_cityscapes_val.

Polygons become *_labelTrainIds.png with cityscapesscripts. Can be repeated and interrupted.

    python datasets/prepare_cityscapes.py --source ~/leftImg8bit_trainvaltest.zip ~/gtFine_trainvaltest.zip
    python datasets/prepare_cityscapes.py --check
"""

import argparse
from pathlib import Path

from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from tcl_d2.data import preparation
from tcl_d2.data.benchmarks import datasets_root
from tcl_d2.utils.files import replacing

POLYGONS, LABELS = "_polygons.json", "_labelTrainIds.png"


def draw(polygons: Path) -> None:
    """Write the train IDs (0..18, 255 ignored) that a polygon file describes."""
    target = polygons.with_name(polygons.name.replace(POLYGONS, LABELS))
    if preparation.is_whole(target):
        return
    try:
        annotation = Annotation()
        annotation.fromJsonFile(str(polygons))
        with replacing(target) as unfinished:
            createLabelImage(annotation, "trainIds").save(unfinished, "PNG")
    except (Exception, SystemExit) as error:  # cityscapesscripts leaves the program where a label is unknown
        raise ValueError(f"{polygons} could not be drawn: {type(error).__name__}: {error}") from None


def prepare(args: argparse.Namespace) -> None:
    folder = datasets_root() / "cityscapes"
    pattern = r"(?P<path>(leftImg8bit/val/[^/]+/[^/]+_leftImg8bit\.png|gtFine/val/[^/]+/[^/]+_gtFine_polygons\.json))"
    preparation.bring(args.source, pattern, folder)
    polygons = sorted(folder.glob(f"gtFine/val/*/*{POLYGONS}"))
    preparation.convert(draw, polygons, args.processes, "drawing labels")


if __name__ == "__main__":
    downloads = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
    preparation.run(preparation.arguments(__doc__, downloads).parse_args(), prepare, ("zeroshot_cityscapes_val",))
