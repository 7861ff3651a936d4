"""From pictures and words to masks, in a few lines."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from .checkpoint import TCLCheckpointer
from .config import load_config
from .data.benchmark_mapper import model_input
from .data.benchmarks import BACKGROUND
from .data.images import ImageLike, as_array

logger = logging.getLogger(__name__)


@dataclass
class Segmentation:
    """An image, segmented into classes.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        classes: K class words; with a background, that is the first.
        scores: of each class at each pixel, in 0..1, fp32 [K, H, W].
        background: whether the first class is the background.
    """

    image: np.ndarray
    classes: list[str]
    scores: Tensor
    background: bool = False

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of each pixel: index into `classes`, int64 [H, W]."""
        return self.scores.argmax(0).numpy()

    def areas(self) -> dict[str, float]:
        """The share of the image that each class takes, in 0..1."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return {name: float(count) / self.labels.size for name, count in zip(self.classes, counts)}

    def index(self, name: str) -> int:
        """Of a class; KeyError for a word that is none."""
        if name not in self.classes:
            raise KeyError(f"'{name}' is no class of this segmentation: {', '.join(self.classes)}")
        return self.classes.index(name)

    def mask(self, name: str) -> np.ndarray:
        """Where a class is, bool [H, W]; KeyError for a word that is none."""
        return self.labels == self.index(name)


class TCLPredictor:
    """Segments pictures into any words, with a model that is built once.

    predictor = TCLPredictor("configs/shapes/trained.yaml")
    found = predictor("photo.jpg", ["red apple", "wooden table"], background=True)
    found.labels, found.areas(), found.mask("red apple")
    """

    def __init__(self, config: CfgNode | str | Path, *options: object):
        """
        Args:
            config: a configuration, or the path of its file; configs/shapes/trained.yaml is a model that comes with
                the project. The model takes the weights of MODEL.WEIGHTS and runs on MODEL.DEVICE, or on
                the CPU where there is no GPU.
            options: KEY, VALUE pairs over those of the file.
        """
        self.cfg = config.clone() if isinstance(config, CfgNode) else load_config(config, options)
        if self.cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            logger.warning("MODEL.DEVICE is %s, but torch finds no GPU here: on the CPU", self.cfg.MODEL.DEVICE)
            self.cfg.defrost()
            self.cfg.MODEL.DEVICE = "cpu"
        if self.cfg.MODEL.META_ARCHITECTURE == "TCL" and not self.cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: the grounder of this TCL model is untrained")
        self.model: nn.Module = build_model(self.cfg).eval()
        TCLCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS)

    def __call__(
        self, image: ImageLike | Sequence[ImageLike], classes: Sequence[str], background: bool = False
    ) -> Segmentation | list[Segmentation]:
        """
        Args:
            image: path, PIL image, or RGB array uint8 [H, W, 3]; or a list of them.
            classes: words, without the background.
            background: whether pixels that none of the words fits well (TEST.ZERO_SHOT.BACKGROUND) are background.

        Returns:
            the segmentation; for a list, a list.

        Raises:
            ValueError: no image, an array of another shape or type, or unusable words; says which.
        """
        if isinstance(image, (list, tuple)):
            return [self(one, classes, background) for one in image]
        pixels = as_array(image)
        sizes = self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST
        one = {**model_input(pixels, *sizes), "vocabulary": list(classes), "background": background}
        with torch.no_grad():
            scores = self.model([one])[0]["sem_seg"].float().cpu()
        return Segmentation(pixels, [BACKGROUND] * background + list(classes), scores, background)


def split_words(text: str) -> list[str]:
    """The class words of "red apple, wooden table"."""
    return [word.strip() for word in text.split(",") if word.strip()]
