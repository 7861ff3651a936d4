"""Bring Cityscapes' validation set into $DETECTRON2_DATASETS/cityscapes, for zeroshot_cityscapes_val."""

import argparse
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from ...data import preparation
from ...data.benchmarks.annotations import check_picture
from ...data.dataset_files import datasets_root, glob_files
from ...utils.files import replacing
from ..options.prepare.releases import CITYSCAPES
from .preparation import Preparation

POLYGONS, LABELS = "_polygons.json", "_labelTrainIds.png"


def draw(polygons: Path) -> None:
    """Draw the train IDs (0..18, 255 ignored) of a polygon file, unless that is done; a ValueError names the file."""
    target = polygons.with_name(polygons.name.replace(POLYGONS, LABELS))
    if preparation.is_whole(target):
        return

    try:
        annotation = Annotation()
        annotation.fromJsonFile(str(polygons))
        _check(annotation, polygons)
        with redirect_stdout(StringIO()), replacing(target) as unfinished:
            createLabelImage(annotation, "trainIds").save(unfinished, "PNG")
    except Exception as error:  # cityscapesscripts raises many types, and prints
        raise ValueError(f"{polygons} could not be drawn: {type(error).__name__}: {error}") from None


def _check(annotation: Annotation, polygons: Path) -> None:
    """Check the labels, for which cityscapesscripts would exit, and the size; ValueError."""
    labels = {item.label for item in annotation.objects if not item.deleted}
    unknown = [label for label in labels if not {label, label.removesuffix("group")} & name2label.keys()]
    if unknown:
        raise ValueError(f"label '{min(unknown)}' is unknown; expected one of {', '.join(name2label)}")

    picture = polygons.name.replace(f"gtFine{POLYGONS}", "leftImg8bit.png")
    size = {"height": annotation.imgHeight, "width": annotation.imgWidth}
    check_picture(size, polygons.parents[3] / "leftImg8bit/val" / polygons.parent.name / picture)


def prepare(args: argparse.Namespace) -> None:
    """Put the validation set into place, and draw its labels."""
    folder = datasets_root() / "cityscapes"
    pattern = r"(?P<path>(leftImg8bit/val/[^/]+/[^/]+_leftImg8bit\.png|gtFine/val/[^/]+/[^/]+_gtFine_polygons\.json))"
    preparation.bring(args.source, pattern, folder)
    polygons = glob_files(folder, f"gtFine/val/*/*{POLYGONS}")
    preparation.convert(draw, polygons, args.processes, "drawing labels")


PREPARATION = Preparation(CITYSCAPES, prepare)
