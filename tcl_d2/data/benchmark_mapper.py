"""How a benchmark's images are read for the model: the unified protocol's size and plain bilinear resizing."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from ..utils.images import BrokenSample, read_image


def check_sizes(short: int, long: int) -> None:
    """Raise a ValueError that names the config key if images cannot be resized so; see segmentation_size."""
    if short < 0:
        raise ValueError(f"INPUT.MIN_SIZE_TEST is {short}; expected a number of pixels, or 0 for no resizing.")
    if long < 1:
        raise ValueError(f"INPUT.MAX_SIZE_TEST is {long}; expected at least 1 pixel.")


def segmentation_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Return the size (height, width) at which an image is segmented.

    Sides are rounded half up, and have at least one pixel.

    Args:
        height: height of the image, in pixels.
        width: width of the image, in pixels.
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


def _neighbors(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the two source pixels beside the center of each target pixel on a side, and their weights in 2048ths.

    Args:
        source: pixels of the side before resizing.
        target: pixels of the side after resizing.

    Returns:
        indices of the first and the second neighbor, weights of the first and the second; integers [target].
    """
    position = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    second_share = position - first.astype(np.float32)
    first_weight = np.rint((1 - second_share) * 2048).astype(np.int32)
    second_weight = np.rint(second_share * 2048).astype(np.int32)
    return first.clip(0, source - 1), (first + 1).clip(0, source - 1), first_weight, second_weight


def model_input(image: np.ndarray, short: int, long: int) -> dict:
    """Make of an RGB image uint8 [H, W, 3] what ZeroShotSegmentor takes; for the sizes see segmentation_size.

    Returns:
        a dict with:

            image: uint8 [3, h, w], resized.
            height: height of the original image.
            width: width of the original image.
    """
    height, width = image.shape[:2]
    size = segmentation_size(height, width, short, long)
    if size != (height, width):
        image = resize_bilinear(image, *size)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return {"image": pixels, "height": height, "width": width}


class BenchmarkMapper:
    """Reads a benchmark's image for the model."""

    @configurable
    def __init__(self, short: int, long: int, skip_broken: bool = False):
        """Set the sizes.

        Args:
            short: short side that images are resized to, in pixels; 0: no resizing.
            long: greatest length of the long side, in pixels.
            skip_broken: whether to give an `error` for an image that cannot be read, rather than to raise it.

        Raises:
            ValueError: a size is out of its range; names the config key.
        """
        check_sizes(short, long)
        self.short = short
        self.long = long
        self.skip_broken = skip_broken

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = False) -> dict:
        """Return the arguments; `is_train` is Detectron2's: images are read alike, for there is no augmentation."""
        return {
            "short": cfg.INPUT.MIN_SIZE_TEST,
            "long": cfg.INPUT.MAX_SIZE_TEST,
            "skip_broken": cfg.TEST.ZERO_SHOT.SKIP_BROKEN,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Read and resize an image.

        Args:
            dataset_dict: a row of a benchmark, with `file_name`.

        Returns:
            the row with these beside what it had:

                image: uint8 [3, h, w], RGB, resized.
                height: height of the original image.
                width: width of the original image.

            Or, for an image that cannot be read, with `skip_broken`:

                error: what is wrong (str).

        Raises:
            OSError: the image is missing or broken; names it.
        """
        path = dataset_dict["file_name"]
        try:
            image = np.asarray(read_image(path, path))
        except BrokenSample as error:
            message = f"Image {path} could not be read: {error.detail}"
            if self.skip_broken:
                return {**dataset_dict, "error": message}
            raise OSError(message) from None
        return {**dataset_dict, **model_input(image, self.short, self.long)}
