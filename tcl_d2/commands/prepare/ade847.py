"""Bring the full ADE20K's validation set into $DETECTRON2_DATASETS/ADE20K_2021_17_01, for zeroshot_ade847_val."""

import argparse
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...assets import FOLDER as ASSETS
from ...data import preparation
from ...data.dataset_files import datasets_root, glob_files
from ...utils.files import replacing
from ...utils.images import as_array
from ...utils.resize import resize_bilinear
from ..options.prepare.releases import ADE847
from .preparation import Preparation

RELEASE = "ADE20K_2021_17_01"
IGNORED = 65535
SHORT_SIDE = 512  # pixels
LABEL_SUFFIX = "_seg.png"


def index_table() -> np.ndarray:
    """Return a table uint16 of the values in the release's labels: 0..846, or IGNORED."""
    indices = json.loads((ASSETS / "classes/ade847_indices.json").read_text())
    table = np.full(1 << 16, IGNORED, np.uint16)
    table[indices] = np.arange(len(indices))
    return table


def decode(colors: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look up the classes of a label image, RGB uint8 [H, W, 3] -> uint16 [H, W]; blue tells instances apart."""
    red, green = colors[..., 0].astype(np.int64), colors[..., 1]
    return table[red // 10 * 256 + green]


def shrink(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shrink an image [H, W, 3] and its label [H, W] to a short side of SHORT_SIDE, unless one is that short."""
    height, width = label.shape
    short, long = sorted(label.shape)
    if short <= SHORT_SIDE:
        return image, label

    # Bilinear, and the nearest pixel above and left, as OpenCV does
    long = round(long / short * SHORT_SIDE)
    size = (SHORT_SIDE, long) if height <= width else (long, SHORT_SIDE)
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, label.shape))
    return resize_bilinear(image, *size), label[np.ix_(rows, columns)]


def convert(source: Path, folder: Path, table: np.ndarray) -> None:
    """Convert a label image of the release, and the image beside it, unless both are done."""
    name = source.name.removesuffix(LABEL_SUFFIX)
    image_path = folder / f"images_detectron2/validation/{name}.jpg"
    label_path = folder / f"annotations_detectron2/validation/{name}.tif"
    if preparation.is_whole(image_path) and preparation.is_whole(label_path):
        return

    # Read both
    original = source.with_name(f"{name}.jpg")
    image, colors = as_array(original), as_array(source)
    if image.shape != colors.shape:
        raise ValueError(f"{source} is {colors.shape[:2]}, but {original} is {image.shape[:2]} (height, width)")

    # Write both; the image with Pillow's own quality, as common
    image, label = shrink(image, decode(colors, table))
    with replacing(image_path) as unfinished:
        Image.fromarray(image).save(unfinished, "JPEG")
    preparation.save_label(label, label_path)


def prepare(args: argparse.Namespace) -> None:
    """Put the release's validation set into place, and convert it."""
    # The release's list of its files is a pickle, which could run any code: names tell the validation set as well
    folder = datasets_root() / RELEASE
    pattern = rf"(?P<path>images/ADE/(?:.+/)?ADE_val_\d+(\.jpg|{re.escape(LABEL_SUFFIX)}))"
    preparation.bring(args.source, pattern, folder)

    # Look for the right release
    sources = glob_files(folder, f"images/ADE/**/ADE_val_*{LABEL_SUFFIX}")
    if not sources and args.source:
        raise ValueError(
            f"{', '.join(map(str, args.source))}: no images/ADE/**/ADE_val_*{LABEL_SUFFIX} in it. Expected the full "
            f"release of 2021, {RELEASE}.zip or its folder. The challenge's of 2016, ADEChallengeData2016, has 150 "
            "classes: tcl-d2 prepare ade20k"
        )

    convert_label = partial(convert, folder=folder, table=index_table())
    preparation.convert(convert_label, sources, args.processes, "converting")


PREPARATION = Preparation(ADE847, prepare)
