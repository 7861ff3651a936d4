"""Region files: which pixels of an image belong together, such as SAM's masks or superpixels."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.errors import list_problems
from ..utils.images import image_size
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
    """Check that each image has a region file of its size, before any of them is read in full.

    Raises:
        FileNotFoundError: there is no such folder, or images without a file; names them.
        ValueError: files are of another size, or no region files; names them.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder of regions '{folder}'")
    missing, unfit = [], []
    for image in images:
        try:
            path, size = region_file(folder, image), image_size(image)
            if size is not None:
                _check_region_file(path, size)
        except FileNotFoundError as error:
            missing.append(error)
        except (OSError, ValueError) as error:
            unfit.append(error)
    if missing:
        raise FileNotFoundError(f"{len(missing)} images have no region file:\n{list_problems(missing)}")
    if unfit:
        raise ValueError(f"{len(unfit)} region files cannot be used:\n{list_problems(unfit)}")


def _check_region_file(path: Path, size: tuple[int, int]) -> None:
    """Check what the beginning of a region file says; errors as read_regions."""
    with _named(path):
        if path.suffix == ".json":
            _read_rles(path, size, most=1)
        else:
            with Image.open(path) as picture:
                _check_size(picture, size)


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
    with _named(path):
        return _read_masks(path, size) if path.suffix == ".json" else _read_numbers(path, size)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the regions in '{path}' cannot be used: {error}") from None


def _read_numbers(path: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(path) as picture:
        _check_size(picture, size)
        pixels = np.asarray(picture)
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise ValueError(f"its pixels are of the kind {picture.mode}; expected gray, palette or RGB")
    if pixels.ndim == 3:
        pixels = pixels.astype(np.int64) @ (1, 2**8, 2**16)

    # Numbers may be large, as colors are
    values, indices = np.unique(pixels, return_inverse=True)
    return indices.reshape(size).astype(np.int64) + int(values[0] != 0)


def _check_size(picture: Image.Image, size: tuple[int, int]) -> None:
    height, width = size
    if picture.size != (width, height):
        raise ValueError(f"it has {picture.height} x {picture.width} pixels, but its image {height} x {width}")


def _read_masks(path: Path, size: tuple[int, int]) -> np.ndarray:
    masks, areas = [], []
    for rle in _read_rles(path, size):
        mask = decode_rle(rle)
        masks.append(np.packbits(mask))
        areas.append(mask.sum())

    # Small ones over large ones
    regions = np.zeros(size, np.int64)
    for number, index in enumerate(np.argsort(areas)[::-1], start=1):
        mask = np.unpackbits(masks[index], count=regions.size).astype(bool)
        regions[mask.reshape(size)] = number
    return regions


def _read_rles(path: Path, size: tuple[int, int], most: int | None = None) -> list[dict]:
    """Read the first `most` masks of a JSON file, or all; a ValueError says which is no mask of an image of `size`."""
    content = json.loads(path.read_bytes())
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError('expected a list of masks, or one under "annotations"')

    rles = []
    for number, entry in enumerate(entries[:most]):
        rle = entry.get("segmentation") if isinstance(entry, dict) else None
        if not isinstance(rle, dict):
            raise ValueError(f'entry {number} has no RLE: expected {{"segmentation": {{"size": ..., "counts": ...}}}}')
        try:
            check_rle(rle, *size)
        except ValueError as error:
            raise ValueError(f"entry {number} {error}") from None
        rles.append(rle)
    return rles
