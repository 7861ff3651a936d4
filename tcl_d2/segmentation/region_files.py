"""Region files: which pixels of an image belong together, such as SAM's masks or superpixels."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.errors import list_problems
from .run_lengths import check_rle, decode_rle

_SUFFIXES = (".png", ".json")


def region_file(folder: str | Path, image: str) -> Path:
    """Return the region file of an image: its name with .png or .json; FileNotFoundError if there is none."""
    paths = [Path(folder, Path(image).stem + suffix) for suffix in _SUFFIXES]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no regions of '{image}': there is neither '{paths[0]}' nor '{paths[1].name}'")


def check_region_files(folder: str | Path, images: Iterable[str]) -> None:
    """Check that each image has a region file; one FileNotFoundError names those without, or a missing folder."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder of regions '{folder}'")
    problems = []
    for image in images:
        try:
            region_file(folder, image)
        except FileNotFoundError as error:
            problems.append(error)
    if problems:
        raise FileNotFoundError(f"{len(problems)} images have no region file:\n{list_problems(problems)}")


def read_regions(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the regions of an image: the number of each pixel's region, from 1 on, or 0 for none; int64 [H, W].

    A PNG has the number of a region at each pixel, as gray, palette or color; 0 or black is of no region. A JSON file
    has COCO's RLE, as SAM's tools write it: a list of {"segmentation": {"size", "counts"}}, or such a list under
    "annotations". Where masks overlap, a pixel belongs to the smallest one.

    Args:
        size: height and width that the regions must have, in pixels.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has another size, or is no such file; names it.
    """
    try:
        return _read_masks(path, size) if path.suffix == ".json" else _read_numbers(path, size)
    except ValueError as error:
        raise ValueError(f"the regions in '{path}' cannot be used: {error}") from None


def _read_numbers(path: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(path) as image:
        if image.size != size[::-1]:
            raise ValueError(_other_size(image.size[::-1], size))
        pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise ValueError(f"its pixels are of the kind {image.mode}; expected gray, palette or RGB")
    if pixels.ndim == 3:
        pixels = pixels.astype(np.int64) @ (1, 2**8, 2**16)

    # Numbers may be large, as colors are
    values, indices = np.unique(pixels, return_inverse=True)
    return indices.reshape(size).astype(np.int64) + int(values[0] != 0)


def _read_masks(path: Path, size: tuple[int, int]) -> np.ndarray:
    content = json.loads(path.read_bytes())
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError('expected a list of masks, or one under "annotations"')

    masks, areas = [], []
    for number, entry in enumerate(entries):
        rle = entry.get("segmentation") if isinstance(entry, dict) else None
        if not isinstance(rle, dict):
            raise ValueError(f'entry {number} has no RLE: expected {{"segmentation": {{"size": ..., "counts": ...}}}}')
        if rle.get("size") != list(size):
            raise ValueError(f"entry {number}: {_other_size(rle.get('size'), size)}")
        try:
            check_rle(rle, *size)
        except ValueError as error:
            raise ValueError(f"entry {number} {error}") from None
        mask = decode_rle(rle)
        masks.append(np.packbits(mask))
        areas.append(mask.sum())

    # Small ones over large ones
    regions = np.zeros(size, np.int64)
    for number, index in enumerate(np.argsort(areas)[::-1], start=1):
        mask = np.unpackbits(masks[index], count=regions.size).astype(bool)
        regions[mask.reshape(size)] = number
    return regions


def _other_size(found: Sequence[int] | None, size: tuple[int, int]) -> str:
    return f"they are of the size {list(found) if found else found}, but the image's is {list(size)} (height, width)"
