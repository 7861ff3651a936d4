"""COCO's run-length encoding of masks (RLE), compressed or not."""

from typing import Any

import numpy as np
import pycocotools.mask


def check_rle(rle: dict[str, Any], height: int, width: int) -> None:
    """Check that an RLE is a mask of an image of this size, for libraries crash on others; a ValueError says why."""
    if rle.get("size") != [height, width]:
        raise ValueError(f"has RLE of the size {rle.get('size')}, but its image has {[height, width]} (height, width)")

    # The runs must cover the image: those that fit into one pixel less are too short
    counts: Any = rle.get("counts")
    if isinstance(counts, str):
        is_whole = _fits(counts, height, width) and not _fits(counts, height * width - 1, 1)
    else:
        is_whole = isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts)
        is_whole = is_whole and sum(counts) == height * width
    if not is_whole:
        raise ValueError(f"has RLE whose counts do not cover its {height} x {width} pixels")


def _fits(counts: str, height: int, width: int) -> bool:
    """Return whether compressed runs can be read, and are no longer than an image of this size."""
    encoded: Any = {"size": [height, width], "counts": counts}
    try:
        pycocotools.mask.decode(encoded)
    except ValueError:
        return False
    return True


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Decode a checked RLE to its mask, bool [H, W]."""
    encoded: Any = rle
    if isinstance(rle["counts"], list):
        encoded = pycocotools.mask.frPyObjects(encoded, *rle["size"])
    return pycocotools.mask.decode(encoded) == 1


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask bool [H, W] to compressed RLE, as JSON holds it."""
    rle: Any = pycocotools.mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}
