"""Bring PASCAL Context's validation set with all 459 classes into $DETECTRON2_DATASETS/pcontext_full."""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import numpy as np

from ...data import preparation
from ...data.dataset_files import datasets_root, read_ids
from ...utils.files import replacing
from ..options.prepare.releases import CONTEXT459
from .context import bring_release, read_label_map
from .preparation import Preparation

IGNORED = 65535


def convert(key: str, release: Path, target: Path) -> None:
    """Write the label of an ID into the benchmark's folder `target`, and link its image, unless they are there."""
    image_path = target / f"image/{key}.jpg"
    if not image_path.exists():
        with replacing(image_path) as unfinished:
            os.symlink(os.path.relpath(release / f"JPEGImages/{key}.jpg", image_path.parent), unfinished)

    label_path = target / f"label/{key}.tif"
    if not preparation.is_whole(label_path):
        values = read_label_map(release / f"trainval/{key}.mat")
        preparation.save_label(np.where(values, values - 1, IGNORED).astype(np.uint16), label_path)


def read_split(release: Path) -> list[str]:
    """Return the IDs of the validation split, from VOC 2010's lists or PASCAL Context's other distribution.

    Raises:
        FileNotFoundError, ValueError: neither is there, or the other distribution's list is damaged.
    """
    for name in ("SegmentationContext", "Main"):
        path = release / f"ImageSets/{name}/val.txt"
        if path.is_file():
            return read_ids(path)

    path = release / "trainval_merged.json"
    if not path.is_file():
        raise FileNotFoundError(f"no list {path.parent / 'ImageSets/Main/val.txt'}, and no {path.name} beside it")
    try:
        images = json.loads(path.read_text())["images"]
        return [Path(image["file_name"]).stem for image in images if image["phase"] == "val"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of PASCAL Context's images ({error!r}): get it again") from None


def prepare(args: argparse.Namespace) -> None:
    """Put the release into place, and convert the labels of its validation split."""
    root = datasets_root()
    release, target = root / "VOC2010", root / "pcontext_full/val"

    # Bring what is ready, and what the release has
    preparation.bring(args.source, r"pcontext_full/val/(?P<path>(image/[^/]+\.jpg|label/[^/]+\.tif))", target)
    bring_release(args.source, release)
    if not (release / "trainval").is_dir():
        return

    # Convert what is labeled of the split
    keys = [key for key in read_split(release) if (release / f"trainval/{key}.mat").exists()]
    preparation.convert(partial(convert, release=release, target=target), keys, args.processes, "converting val")


PREPARATION = Preparation(CONTEXT459, prepare)
