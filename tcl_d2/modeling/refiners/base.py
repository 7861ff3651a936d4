"""Refiner: makes scores follow the image's edges; and the registry of refiners."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fvcore.common.registry import Registry
from torch import Tensor, nn

NO_REFINER = "none"
IMAGE_STAGES = ("windows", "input", "image", "classes")  # at which a refiner sees one image at a time
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
            "windows": the scores of words in all windows of an image together, at their own resolution; some words at a
                time, as in the next two.
            "input": the scores of words, averaged over windows, at the size at which the model is given the image.
            "image": the same, enlarged to the output's size.
            "classes": the scores of all classes, the background among them, at the output's size; the class with the
                best refined score is the label. Last may be a channel for pixels of no class, see negative words.
    """

    stage = "crop"

    @property
    def parts(self) -> tuple["Refiner", ...]:
        """The refiners that it consists of, each with a stage of its own."""
        return (self,)

    def load(self) -> None:
        """Load what it needs, such as weights, so that errors come when a model is built; by default nothing."""

    def forward(self, images: Tensor, scores: Tensor) -> Tensor:
        """Refine scores [B, K, H, W] -> fp32 [B, K, H, W] by normalized images, fp32 [B, 3, H', W'].

        At the stages "input", "image" and "classes", B is 1 and images have the size of the scores. At "crop" and
        "windows" images are windows as the model sees them, with their padding; at "windows", refined scores may have
        another resolution.
        """
        raise NotImplementedError

    def bind(
        self, images: Tensor, input_per_image: Mapping | None = None, corners: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return `forward` for these images: a function of scores, which may keep what depends on images alone.

        Args:
            input_per_image: at all stages but "crop", what the model was given for the image, such as its `file_name`,
                where it comes from a file.
            corners: at the stage "windows" alone, the first row and column of each window in the image, int64 [B, 2].
        """
        return partial(self, images)


class RefinerChain(Refiner):
    """Several refiners, each at its own stage; of one stage in their order."""

    stage = "several"
    refiners: Any  # an nn.ModuleList of them

    def __init__(self, *refiners: Refiner):
        super().__init__()
        self.refiners = nn.ModuleList(refiners)

    @property
    def parts(self) -> tuple[Refiner, ...]:
        return tuple(part for refiner in self.refiners for part in refiner.parts)

    def load(self) -> None:
        for refiner in self.refiners:
            refiner.load()


def to_colors(images: Tensor, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> Tensor:
    """Undo the normalization of images [B, 3, H, W]: whole numbers in 0..255, in the images' dtype."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (pixel_mean, pixel_std))
    return (images * std + mean).round().clamp(0, 255)


def keep_scores(scores: Tensor) -> Tensor:
    """Return the scores as they are: stands in for a bound refiner."""
    return scores
