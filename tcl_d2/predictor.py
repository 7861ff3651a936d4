"""From pictures and words to masks, in a few lines."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from .checkpoint import TCLCheckpointer
from .config import check_meta_architecture, load_config
from .data.benchmark_mapper import model_input
from .data.benchmarks import BACKGROUND
from .data.images import ImageLike, as_array
from .segmentation import Segmentation

logger = logging.getLogger(__name__)


class TCLPredictor:
    """Segments pictures into any words, with a model that is built once.

    predictor = TCLPredictor("configs/shapes/trained.yaml")
    segmentation = predictor("photo.jpg", ["red apple", "wooden table"], background=True)
    segmentation.labels, segmentation.areas(), segmentation.mask("red apple")
    """

    def __init__(self, config: CfgNode | str | Path, *options: object):
        """
        Args:
            config: a configuration, or the path of its file; configs/shapes/trained.yaml is a model that comes with
                the project. The model takes the weights of MODEL.WEIGHTS and runs on MODEL.DEVICE, or on
                the CPU where there is no GPU.
            options: KEY, VALUE pairs over those of the configuration.
        """
        if isinstance(config, CfgNode):
            self.cfg = config.clone()
            self.cfg.defrost()
            self.cfg.merge_from_list([str(option) for option in options])
        else:
            self.cfg = load_config(config, options)
        check_meta_architecture(self.cfg)

        if self.cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            logger.warning("MODEL.DEVICE is %s, but torch finds no GPU here: on the CPU", self.cfg.MODEL.DEVICE)
            self.cfg.MODEL.DEVICE = "cpu"
        if self.cfg.MODEL.META_ARCHITECTURE == "TCL" and not self.cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: the grounder of this TCL model is untrained")

        self.model: nn.Module = build_model(self.cfg).eval()
        TCLCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS)

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        classes: str | Sequence[str],
        background: bool = False,
        *,
        labels_only: bool = False,
        longest_side: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or each of a list of them.

        Args:
            image: path, PIL image, or array, see data.images.as_array; or a list of them.
            classes: words, without the background; or one text, words separated by commas.
            background: whether pixels that no word fits well (TEST.ZERO_SHOT.BACKGROUND_SCORE) are background.
            labels_only: whether to go without the scores, which take 4 bytes for each class at each pixel.
            longest_side: most pixels that a side of the result may have; the model sees the image at its working size
                all the same. None: the result is as large as the image.

        Returns:
            the segmentation; for a list, a list.

        Raises:
            ValueError: no image, an array of another shape or type, or unusable words; says which.
        """
        words = class_words(classes, background)
        if isinstance(image, (list, tuple)):
            options = {"labels_only": labels_only, "longest_side": longest_side}
            return [self(picture, words, background, **options) for picture in image]

        # The image at the model's working size, and at that of the result.
        pixels = as_array(image)
        inputs = model_input(pixels, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        if longest_side is not None:
            pixels = _shrink(pixels, longest_side)
        inputs["height"], inputs["width"] = pixels.shape[:2]

        # Run the model.
        inputs |= {"vocabulary": words, "background": background, "labels_only": labels_only}
        with torch.no_grad():
            output = self.model([inputs])[0]
        scores = None if labels_only else output["sem_seg"].float().cpu()
        labels = output["sem_seg_labels"].cpu() if labels_only else scores.argmax(0)

        names = [BACKGROUND, *words] if background else words
        return Segmentation(pixels, names, labels.numpy(), background, scores)


def split_words(text: str) -> list[str]:
    """Return the class words of "red apple, wooden table"."""
    return [word.strip() for word in text.split(",") if word.strip()]


def class_words(classes: str | Sequence[str], background: bool = False) -> list[str]:
    """Return class words as a list.

    Args:
        classes: the words, or one text, words separated by commas.
        background: whether a background comes before them.

    Raises:
        ValueError: one of the words is "background", and there is a background besides.
    """
    words = split_words(classes) if isinstance(classes, str) else list(classes)
    if background and BACKGROUND in words:
        raise ValueError(
            f"'{BACKGROUND}' is one of the class words, and the background comes before them as a class of that name: "
            "leave the word out, or go without the background."
        )
    return words


def _shrink(image: np.ndarray, longest_side: int) -> np.ndarray:
    """Shrink [H, W, 3] until no side has more pixels than that; a smaller image stays as it is."""
    if longest_side < 1:
        raise ValueError(f"longest_side is a number of pixels of at least 1, not {longest_side}.")
    picture = Image.fromarray(image)
    picture.thumbnail((longest_side, longest_side))
    return np.asarray(picture)
