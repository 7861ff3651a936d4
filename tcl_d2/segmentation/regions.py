"""Regions of an image that users point at, as masks."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..utils.numbers import is_whole


def point_mask(x: int, y: int, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of one pixel, bool [H, W], for an image of a size (height, width).

    Raises:
        ValueError: the point lies outside the image, or is not of whole numbers.
    """
    if not (is_whole(x) and is_whole(y)):
        raise ValueError(f"The point ({x!r}, {y!r}) is not two whole numbers, the column and the row of a pixel.")
    height, width = size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"The point ({x}, {y}) lies outside the image of {width} x {height} pixels.")
    mask = np.zeros(size, bool)
    mask[y, x] = True
    return mask


def connected_mask(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return the part of a mask bool [H, W] that is connected, side by side, with one of its pixels."""
    parts, _ = ndimage.label(mask)
    return parts == parts[y, x]


def grow_mask(mask: np.ndarray) -> np.ndarray:
    """Grow a mask bool [H, W] until a single pixel can be seen in a picture."""
    return ndimage.binary_dilation(mask, iterations=1 + max(mask.shape) // 100)


def as_mask(region: np.ndarray | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return a region of an image of a size (height, width) as a mask bool [H, W].

    Args:
        region: mask [H, W]; or a point (x, y), column and row of a pixel.

    Raises:
        ValueError: a mask of another size or type, or without pixels, or a point outside the image or of floats.
    """
    if np.shape(region) == (2,):
        return point_mask(*region, size)
    region = np.asarray(region)
    if region.shape != tuple(size):
        shape, expected = list(region.shape), list(size)
        raise ValueError(
            f"The region is a mask of shape {shape}; expected {expected}, as the image, or a point (x, y)."
        )
    if region.dtype.kind not in "bui" and not np.isin(region, (0, 1)).all():
        raise ValueError(f"The region is a mask of {region.dtype}, not of 0 and 1; expected bool, as of scores > 0.5.")
    mask = region.astype(bool)
    if not mask.any():
        raise ValueError("The region is a mask without pixels: give it at least one.")
    return mask
