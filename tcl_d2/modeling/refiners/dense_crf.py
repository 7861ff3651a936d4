"""DenseCRF: mean field of a fully connected CRF (Krähenbühl & Koltun, NIPS 2011), by the package pydensecrf2."""

import logging
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n
from torch import Tensor

from ...config.ranges import check_values
from ..functional import map_size, resize_scores
from .base import REFINER_REGISTRY, Refiner, to_colors

# Scores of an image, classes times pixels, that are refined at its own size: they take about 6 GB.
_MOST_SCORES = 2**26


class DenseCRF(Refiner):
    """Makes probabilities of the scores of classes, alike at pixels that are near each other and have like colors.

    Scores are taken as logits, as ReCo's release does. It runs on the CPU.
    """

    stage = "classes"

    def __init__(
        self,
        iterations: int = 10,
        gaussian_sxy: float = 1.0,
        gaussian_compat: float = 3.0,
        bilateral_sxy: float = 67.0,
        bilateral_srgb: float = 3.0,
        bilateral_compat: float = 4.0,
        pixel_mean: Sequence[float] = (0.0, 0.0, 0.0),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    ):
        """Choose both kernels; the defaults are those of ReCo's release.

        The first kernel sees distances alone, the second one colors too. `sxy` is the standard deviation of distances
        in pixels, `srgb` that of colors in 0..255, `compat` the weight of the kernel. Images come normalized with
        `pixel_mean` and `pixel_std`; by default they are in 0..255. RuntimeError if pydensecrf2 is not installed.
        """
        super().__init__()
        self.iterations = iterations
        self.gaussian = {"sxy": gaussian_sxy, "compat": gaussian_compat}
        self.bilateral = {"sxy": bilateral_sxy, "srgb": bilateral_srgb, "compat": bilateral_compat}
        for kernel in ("gaussian", "bilateral"):
            numbers = {f"{kernel}_{name}".upper(): value for name, value in getattr(self, kernel).items()}
            check_values("TEST.ZERO_SHOT.DENSECRF", ITERS=iterations, **numbers)
        _import_pydensecrf()
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)

    def forward(self, images: Tensor, scores: Tensor) -> Tensor:
        """Infer the probabilities of all classes from their scores: [B, K, H, W] -> fp32 [B, K, H, W].

        Large images with many classes, for which memory would run out, are refined at a smaller size.
        """
        # Bound the memory
        size = map_size(scores)
        if scores[0].numel() > _MOST_SCORES:
            scale = math.sqrt(_MOST_SCORES / scores[0].numel())
            smaller = max(1, int(scale * size[0])), max(1, int(scale * size[1]))
            message = f"DenseCRF refines {scores.shape[1]} classes of an image of {size} at {smaller}, to save memory"
            log_first_n(logging.WARNING, message, name=__name__)
            images, scores = resize_scores(images, smaller), resize_scores(scores, smaller)

        pixels = to_colors(images, self.pixel_mean, self.pixel_std).byte()
        probabilities = torch.stack([self._infer(*image_and_scores) for image_and_scores in zip(pixels, scores)])
        return resize_scores(probabilities, size)

    def _infer(self, image: Tensor, scores: Tensor) -> Tensor:
        """Infer the probabilities [K, H, W] of one image, RGB uint8 [3, H, W]."""
        num_classes, height, width = scores.shape

        # Energies of single pixels, of near pixels, and of pixels that look alike
        crf = _import_pydensecrf().DenseCRF2D(width, height, num_classes)
        crf.setUnaryEnergy(-scores.float().log_softmax(0).flatten(1).cpu().numpy())
        crf.addPairwiseGaussian(**self.gaussian)
        rgb = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        crf.addPairwiseBilateral(**self.bilateral, rgbim=rgb)

        probabilities = torch.from_numpy(np.array(crf.inference(self.iterations)))
        return probabilities.view(num_classes, height, width).to(scores.device)


def _import_pydensecrf() -> ModuleType:
    """Import the package, which is optional: it is compiled when it is installed."""
    try:
        # Compiled, without types, and perhaps not there
        from pydensecrf import densecrf  # pyright: ignore[reportAttributeAccessIssue, reportMissingImports]
    except ImportError as error:
        raise RuntimeError(
            f"TEST.ZERO_SHOT.REFINE densecrf needs pydensecrf2, which cannot be imported ({error}): pip install "
            "pydensecrf2, with a C++ compiler"
        ) from None
    return densecrf


@REFINER_REGISTRY.register()
def densecrf(cfg: CfgNode) -> DenseCRF:
    settings = cfg.TEST.ZERO_SHOT.DENSECRF
    return DenseCRF(
        settings.ITERS,
        settings.GAUSSIAN_SXY,
        settings.GAUSSIAN_COMPAT,
        settings.BILATERAL_SXY,
        settings.BILATERAL_SRGB,
        settings.BILATERAL_COMPAT,
        cfg.MODEL.PIXEL_MEAN,
        cfg.MODEL.PIXEL_STD,
    )
