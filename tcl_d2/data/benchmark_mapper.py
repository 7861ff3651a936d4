"""How a benchmark's images are read for the model: the unified protocol's size and plain bilinear resizing."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from .images import BrokenSample, read_image


def check_sizes(short: int, long: int) -> None:
    """Raise a ValueError that names the config key if images cannot be resized so; see segmentation_size."""
    if short < 0:
        raise ValueError(f"INPUT.MIN_SIZE_TEST is {short}; expected a number of pixels, or 0 for no resizing.")
    if long < 1:
        raise ValueError(f"INPUT.MAX_SIZE_TEST is {long}; expected at least 1 pixel.")


def segmentation_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Return the size (height, width) at which an image is segmented.

    Args:
        height, width: of the image, in pixels.
        short: short side of the result; 0: as the image is, whatever `long`, as in Detectron2.
        long: the most that the long side may have. Sides are rounded half up, and have at least one pixel.
    """
    if short == 0:
        return height, width
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resizing without antialias, uint8 [H, W, 3] -> uint8 [height, width, 3], bit for bit OpenCV's.

    The published numbers had OpenCV's INTER_LINEAR; PIL's bilinear antialiases when it shrinks, which moves mIoU.
    OpenCV's arithmetic is repeated here, since its own wheel needs a display library that servers often lack.
    """
    left, right, weight_left, weight_right = _neighbours(image.shape[1], width)
    top, bottom, weight_top, weight_bottom = _neighbours(image.shape[0], height)
    # OpenCV weights by whole 2048ths; of a row's result it keeps 7 bits after the point, of the last 2 before rounding.
    rows = image.take(left, 1) * weight_left[:, None] + image.take(right, 1) * weight_right[:, None] >> 4
    upper = rows[top] * weight_top[:, None, None] >> 16
    lower = rows[bottom] * weight_bottom[:, None, None] >> 16
    return (upper + lower + 2 >> 2).astype(np.uint8)


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each of `target` pixels on a side: the two source pixels beside its centre, and their weights in 2048ths."""
    position = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    first_weight, second_weight = (np.rint(part * 2048).astype(np.int32) for part in (1 - share, share))
    return first.clip(0, source - 1), (first + 1).clip(0, source - 1), first_weight, second_weight


def model_input(image: np.ndarray, short: int, long: int) -> dict:
    """What ZeroShotSegmentor takes for an RGB image uint8 [H, W, 3].

    Returns:
        `image` uint8 [3, h, w] at the size of segmentation_size; the original `height` and `width`.
    """
    height, width = image.shape[:2]
    size = segmentation_size(height, width, short, long)
    if size != (height, width):
        image = resize_bilinear(image, *size)
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "height": height,
        "width": width,
    }


class BenchmarkMapper:
    """Reads a benchmark's image for the model: {"file_name", ...} -> the same with what ZeroShotSegmentor takes."""

    @configurable
    def __init__(self, short: int, long: int, skip_broken: bool = False):
        """
        Args:
            short, long: the short side that images are resized to (0: no resizing), and the most that the long side
                may have, in pixels.
            skip_broken: whether to give an `error` for an image that cannot be read, rather than to raise it.

        Raises:
            ValueError: a size is out of its range; names the config key.
        """
        check_sizes(short, long)
        self.short = short
        self.long = long
        self.skip_broken = skip_broken

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        sizes = {"short": cfg.INPUT.MIN_SIZE_TEST, "long": cfg.INPUT.MAX_SIZE_TEST}
        return {**sizes, "skip_broken": cfg.TEST.ZERO_SHOT.SKIP_BROKEN}

    def __call__(self, one: dict) -> dict:
        """
        Returns:
            `one` with `image` uint8 [3, h, w] (RGB, resized), the original `height` and `width`, and `labels_only`; or,
            with `skip_broken`, with the `error` (str) for an image that cannot be read.

        Raises:
            OSError: the image is missing or broken; names it.
        """
        try:
            image = np.asarray(read_image(one["file_name"], one["file_name"]))
        except BrokenSample as error:
            message = f"Image {one['file_name']} could not be read: {error.detail}"
            if self.skip_broken:
                return {**one, "error": message}
            raise OSError(message) from None
        return {**one, **model_input(image, self.short, self.long), "labels_only": True}
