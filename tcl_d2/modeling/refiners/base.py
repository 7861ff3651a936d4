"""Refiner: makes scores follow the image's edges; and the registry of refiners."""

from collections.abc import Callable, Mapping
from functools import partial

from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

NO_REFINER = "none"
REFINER_REGISTRY = Registry("REFINER")
REFINER_REGISTRY.__doc__ = """
Builders of refiners by name, the values of TEST.ZERO_SHOT.REFINE besides "none": a function of the configuration that
returns a Refiner. Values for single datasets (TEST.ZERO_SHOT.BY_DATASET) are not in it when a model is built, but
when their dataset is evaluated.
"""


class Refiner(nn.Module):
    """A rule that makes scores follow the image. Nothing in it is trained.

    A subclass gives `forward`.

    Attributes:
        stage: which scores it takes:

            "crop": the masks of words in each window, at their own resolution, as the model makes them.
            "image": the scores of words, averaged over windows, at the output's size; some words at a time.
            "classes": the scores of all classes, the background among them, at the output's size; the class with the
                best refined score is the label. Last may be a channel for pixels of no class, see negative words.
    """

    stage = "crop"

    def forward(self, images: Tensor, scores: Tensor) -> Tensor:
        """Refine scores [B, K, H, W] -> fp32 [B, K, H, W] by normalized images, fp32 [B, 3, H', W'].

        At the stages "image" and "classes", B is 1 and images have the size of the scores.
        """
        raise NotImplementedError

    def bind(self, images: Tensor, input_per_image: Mapping | None = None) -> Callable[[Tensor], Tensor]:
        """Return `forward` for these images: a function of scores, which may keep what depends on images alone.

        Args:
            input_per_image: at the stages "image" and "classes", what the model was given for the image, such as its
                `file_name`, where it comes from a file.
        """
        return partial(self, images)


def keep_scores(scores: Tensor) -> Tensor:
    """Return the scores as they are: stands in for a bound refiner."""
    return scores


def build_refiner(cfg: CfgNode) -> Refiner | None:
    """Build the refiner that TEST.ZERO_SHOT.REFINE names; None for "none".

    Raises:
        ValueError: no such refiner, or a setting out of its range; names the config key.
        RuntimeError: it needs a package that is not installed.
    """
    name = cfg.TEST.ZERO_SHOT.REFINE
    if name == NO_REFINER:
        return None
    if name not in REFINER_REGISTRY:
        raise ValueError(f"TEST.ZERO_SHOT.REFINE is '{name}'; expected one of {', '.join(refiner_names())}.")
    return REFINER_REGISTRY.get(name)(cfg)


def refiner_names() -> list[str]:
    """List the values of TEST.ZERO_SHOT.REFINE."""
    return [NO_REFINER, *(name for name, _ in REFINER_REGISTRY)]
