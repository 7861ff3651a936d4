"""Reading a benchmark's images for the model: by default the unified protocol's size, and plain bilinear resizing."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import SizeMismatchError, check_image_size

from ...config.ranges import check_values
from ...utils.images import BrokenSample, read_image
from ...utils.resize import resize_bicubic, resize_bilinear, segmentation_size


def image_settings(cfg: CfgNode) -> dict:
    """Return the arguments of `model_input` that a configuration gives."""
    return {"short": cfg.INPUT.MIN_SIZE_TEST, "long": cfg.INPUT.MAX_SIZE_TEST, "resize": cfg.INPUT.RESIZE_TEST}


def model_input(image: np.ndarray, short: int, long: int, resize: str = "opencv_bilinear") -> dict:
    """Turn an RGB image uint8 [H, W, 3] into a segmentor's input; sizes as segmentation_size's.

    Args:
        resize: a value of INPUT.RESIZE_TEST.

    Returns:
        `image`, uint8 [3, h, w], resized; `height` and `width`, those of the original image.
    """
    height, width = image.shape[:2]
    size = segmentation_size(height, width, short, long)
    if resize == "pil_bicubic":
        image = resize_bicubic(image, short, long)
    elif size != (height, width):
        image = resize_bilinear(image, *size)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return {"image": pixels, "height": height, "width": width}


class BenchmarkMapper:
    """Reads a benchmark's image for the model."""

    @configurable
    def __init__(self, short: int, long: int, skip_broken: bool = False, resize: str = "opencv_bilinear"):
        """Set the sizes.

        Args:
            short: short side that images are resized to, in pixels; 0: no resizing.
            long: greatest length of the long side, in pixels.
            resize: see model_input.
            skip_broken: return the `error` of an image that cannot be used, rather than raise it.
        """
        check_values("INPUT", MIN_SIZE_TEST=short, MAX_SIZE_TEST=long, RESIZE_TEST=resize)
        self.short = short
        self.long = long
        self.resize = resize
        self.skip_broken = skip_broken

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = False) -> dict:
        """Return the arguments; Detectron2 passes `is_train`, but images are never augmented."""
        return {**image_settings(cfg), "skip_broken": cfg.TEST.ZERO_SHOT.SKIP_BROKEN}

    def __call__(self, dataset_dict: dict) -> dict:
        """Read and resize the image of a benchmark's row, with `file_name`, and optionally `height` and `width`.

        Returns:
            the row with `image`, `height` and `width`, see model_input; or, with `skip_broken`, with an `error` (str).

        Raises:
            OSError: the image is missing or broken; names it.
            SizeMismatchError: its size is not the row's `height` and `width`, as in Detectron2's mapper; names it.
        """
        path = dataset_dict["file_name"]
        try:
            image = np.asarray(read_image(path, path))
            check_image_size(dict(dataset_dict), image)
        except (BrokenSample, SizeMismatchError) as error:
            if isinstance(error, BrokenSample):
                error = OSError(f"Image {path} could not be read: {error.detail}")
            if self.skip_broken:
                return {**dataset_dict, "error": str(error)}
            raise error from None
        return {**dataset_dict, **model_input(image, self.short, self.long, self.resize)}
