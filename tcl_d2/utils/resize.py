"""Sizes at which images are segmented, and resizing as OpenCV and PIL do, on arrays."""

import numpy as np
from PIL import Image


def segmentation_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Return the size (height, width) at which an image is segmented, rounded half up, at least one pixel a side.

    Args:
        short: short side of the result; 0: as the image is, whatever `long`, as in Detectron2.
        long: greatest length of the long side.
    """
    if short == 0:
        return height, width
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] to uint8 [height, width, 3], bilinear without antialias, bit for bit as OpenCV does.

    The published numbers were made with OpenCV's INTER_LINEAR; PIL's bilinear antialiases when it shrinks, which moves
    mIoU. OpenCV's arithmetic is repeated here, because its own wheel needs a display library that servers often lack.
    """
    left, right, weight_left, weight_right = _neighbors(image.shape[1], width)
    top, bottom, weight_top, weight_bottom = _neighbors(image.shape[0], height)

    # OpenCV weights by whole 2048ths. It keeps 7 bits after the point of a row's result, and 2 of the last sum, which
    # are then rounded.
    rows = image.take(left, 1) * weight_left[:, None] + image.take(right, 1) * weight_right[:, None] >> 4
    upper = rows[top] * weight_top[:, None, None] >> 16
    lower = rows[bottom] * weight_bottom[:, None, None] >> 16
    return (upper + lower + 2 >> 2).astype(np.uint8)


def resize_bicubic(image: np.ndarray, short: int, long: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] to a short side by PIL's bicubic, which antialiases when it shrinks.

    Sizes are segmentation_size's, but rounded down.
    """
    height, width = image.shape[:2]
    least, greatest = min(height, width), max(height, width)
    if short == 0 or least == short:
        return image
    target = short, greatest * short // least
    if target[1] > long:
        target = max(1, least * long // greatest), long
    size = target if width <= height else target[::-1]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _neighbors(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of each target pixel's two source pixels, and their weights in 2048ths; integers [target]."""
    position = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    second_share = position - first.astype(np.float32)
    first_weight = np.rint((1 - second_share) * 2048).astype(np.int32)
    second_weight = np.rint(second_share * 2048).astype(np.int32)
    return first.clip(0, source - 1), (first + 1).clip(0, source - 1), first_weight, second_weight
