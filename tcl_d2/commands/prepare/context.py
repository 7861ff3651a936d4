"""Bring PASCAL Context into $DETECTRON2_DATASETS/VOC2010."""

import argparse
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from scipy.io import loadmat

from ...data import preparation
from ...data.dataset_files import datasets_root, read_ids
from ...utils.files import replacing
from ..options.prepare.releases import CONTEXT
from .preparation import Preparation

NUM_VALUES = 459  # classes of the release


def read_table(path: Path, words: list[str]) -> np.ndarray:
    """Read the release's labels.txt ("1: accordion", ...) as a table uint8: MATLAB value -> 1..59 for `words`, else 0.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or a word is not in it.
    """
    lines = re.findall(r"^\s*(\d+)\s*:\s*(.+?)\s*$", path.read_text(), re.MULTILINE)
    values = {name.replace(" ", "").lower(): int(value) for value, name in lines}
    missing = [word for word in words if word not in values]
    if missing:
        raise ValueError(f"{path} does not name {', '.join(missing)}; expected the 459 lines 'number: name'")

    table = np.zeros(max(NUM_VALUES, *values.values()) + 1, np.uint8)
    for k, word in enumerate(words, start=1):
        table[values[word]] = k
    return table


def read_label_map(path: Path) -> np.ndarray:
    """Read the values of a MATLAB file of the release, integers [H, W] in 0..459; 0 is no class.

    Raises:
        ValueError: it has no such values; names it.
    """
    try:
        label = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except Exception as error:  # scipy raises many types
        problem = f"{path} has no LabelMap that can be read ({type(error).__name__}: {error})"
        raise ValueError(f"{problem}; expected a file of the release's trainval.tar.gz") from None
    if label.ndim != 2 or label.max(initial=0) > NUM_VALUES:
        raise ValueError(f"{path}: LabelMap {label.shape} with values up to {label.max()}; expected [H, W], 1..459")
    return label


def convert(job: tuple[Path, Path], table: np.ndarray) -> None:
    """Write the 60-class PNG of a MATLAB file, unless it is there."""
    source, target = job
    if preparation.is_whole(target):
        return

    preparation.save_label(table[read_label_map(source)], target)


def convert_all(folder: Path, processes: int) -> None:
    """Convert the MATLAB files of both splits, and write the lists of their IDs."""
    words = MetadataCatalog.get("zeroshot_context59_val").stuff_classes
    table = read_table(folder / "labels.txt", words)
    for split in ("train", "val"):
        keys = read_ids(folder / f"ImageSets/Main/{split}.txt")
        keys = [key for key in keys if (folder / f"trainval/{key}.mat").exists()]
        jobs = [(folder / f"trainval/{key}.mat", folder / f"SegmentationClassContext/{key}.png") for key in keys]
        preparation.convert(partial(convert, table=table), jobs, processes, f"converting {split}")
        with replacing(folder / f"ImageSets/SegmentationContext/{split}.txt") as unfinished:
            unfinished.write_text("".join(f"{key}\n" for key in keys))


def bring_release(sources: Iterable[Path], folder: Path) -> None:
    """Put VOC 2010's images and lists, and PASCAL Context's labels, into a folder."""
    pattern = r"VOC2010/(?P<path>(JPEGImages/[^/]+\.jpg|ImageSets/(Main|SegmentationContext)/(train|val)\.txt))"
    preparation.bring(sources, pattern, folder)
    pattern = r"(?P<path>(SegmentationClassContext/[^/]+\.png|trainval/[^/]+\.mat|trainval_merged\.json|labels\.txt))"
    preparation.bring(sources, pattern, folder)


def prepare(args: argparse.Namespace) -> None:
    """Put the release into place, and convert its labels."""
    folder = datasets_root() / "VOC2010"
    bring_release(args.source, folder)
    if (folder / "trainval").is_dir():
        convert_all(folder, args.processes)


PREPARATION = Preparation(CONTEXT, prepare)
