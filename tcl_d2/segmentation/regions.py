"""Regions of an image that users point at, as masks."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import scipy  # which loads its parts when they are used

from ..utils.errors import expect
from ..utils.numbers import is_whole


def point_mask(x: int, y: int, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of one pixel, bool [H, W], for an image of a size (height, width).

    Raises:
        ValueError: the point lies outside the image, or is not of whole numbers.
    """
    height, width = size
    is_inside = is_whole(x) and is_whole(y) and 0 <= x < width and 0 <= y < height
    expected = f"two whole numbers, the column and the row of a pixel in the image of {width} x {height} pixels"
    expect(is_inside, "The point", f"({x!r}, {y!r})", expected)
    mask = np.zeros(size, bool)
    mask[y, x] = True
    return mask


def connected_mask(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return the part of a mask bool [H, W] that is connected, side by side, with one of its pixels."""
    parts, _ = cast(tuple[np.ndarray, int], scipy.ndimage.label(mask))
    return parts == parts[y, x]


def grow_mask(mask: np.ndarray) -> np.ndarray:
    """Grow a mask bool [H, W] until a single pixel can be seen in a picture."""
    return scipy.ndimage.binary_dilation(mask, iterations=1 + max(mask.shape) // 100)


def as_mask(region: np.ndarray | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return a region of an image of a size (height, width) as a mask bool [H, W].

    Args:
        region: mask [H, W]; or a point (x, y), column and row of a pixel.

    Raises:
        ValueError: a mask of another size or type, or without pixels, or a point outside the image or of floats.
    """
    if np.shape(region) == (2,):
        x, y = region
        return point_mask(x, y, size)
    region = np.asarray(region)
    is_mask = region.shape == tuple(size) and (region.dtype.kind in "bui" or bool(np.isin(region, (0, 1)).all()))
    expected = f"a mask bool {list(size)}, as the image, as of scores > 0.5; or a point (x, y)"
    expect(is_mask, "The region", f"an array {region.dtype} {list(region.shape)}", expected)
    mask = region.astype(bool)
    expect(bool(mask.any()), "The region", "a mask without pixels", "at least one")
    return mask
