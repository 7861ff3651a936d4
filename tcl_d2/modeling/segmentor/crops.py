"""CropSegmentor: what a method says about the masks of crops; windows, words and background are ZeroShotSegmentor's."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...config.ranges import check_values
from ..encoders.base import DualEncoder
from ..functional import map_size, normalize, resize_scores
from ..refiners.base import Refiner, keep_scores
from .windows import pad_below, pad_to_multiple


class CropFeatures(NamedTuple):
    """What is computed of a batch of crops once, for any words; `| Any` where a method may leave a field None.

    Attributes:
        images: normalized crops [B, 3, H, W].
        clip_features: CLIP's own of each patch, normalized, [B, D, h, w].
        embedding: the grounder's pixel embeddings, [B, D, h', w'].
        refine: what brings masks [B, K, h, w] of the crops to their edges, see bind_refiner.
    """

    images: Tensor
    clip_features: Tensor | Any
    embedding: Tensor | Any = None
    refine: Callable[[Tensor], Tensor] = keep_scores


class CropPlace(NamedTuple):
    """Where crops are in the map of their scores.

    Attributes:
        size: height and width of the enlarged map, in pixels.
        place: the slices (rows, columns) of the crops in it.
        align_corners: see CropSegmentor.
    """

    size: tuple[int, int]
    place: tuple[slice, slice]
    align_corners: bool = False


class CropMap(NamedTuple):
    """Scores or features of crops, as predicted.

    Attributes:
        values: [B, k, h, w], of any resolution.
        size: of the enlarged map, see CropPlace; so are the others.
    """

    values: Tensor
    size: tuple[int, int]
    place: tuple[slice, slice]
    align_corners: bool = False

    @property
    def stride(self) -> tuple[float, float]:
        """Pixels between neighbors in a column and in a row of `values`."""
        return self.size[0] / self.values.shape[-2], self.size[1] / self.values.shape[-1]

    def enlarge(self, channels: slice = slice(None)) -> Tensor:
        """Enlarge some of the channels, bilinear, and cut the padding off: [B, k', H, W]."""
        return resize_scores(self.values[:, channels], self.size, self.align_corners)[(..., *self.place)]


def _call_in_turn(functions: Sequence[Callable[[Tensor], Tensor]], scores: Tensor) -> Tensor:
    for function in functions:
        scores = function(scores)
    return scores


class CropSegmentor(nn.Module):
    """Predicts scores of words in crops of images, on a frozen CLIP.

    A subclass says in `encode` and `predict_masks` how images and text features become scores, in `prepare` what
    depends on all words together, and in `predict_background` where the background is, if not by a constant score.

    Attributes:
        has_background_map: whether `predict_background` takes the place of the background's constant score.
        pad_to: crops are padded to multiples of so many pixels; None: to whole patches; 1: not at all.
        squeezes_padding: whether padding is black, at the right and at the bottom, and scores of the padded crops are
            squeezed into the crops; otherwise it is of the mean color, on all sides, and cut off.
        enlarges_once: whether scores of windows that are whole images are enlarged at once to the result's size.
        align_corners: whether a crop's scores are enlarged with the centers of the corners' patches on its corners.
        refiner: what brings scores to the image's edges; None for nothing.
        is_memory_short: whether memory ran out for single windows, so that little may be held.
        background_score, logit_scale, area_threshold: see ZeroShotSegmentor.set_protocol.
        join_words_first: whether a class has its best word's score before scores are enlarged to the result's size.
    """

    join_words_first = False
    has_background_map = False
    is_memory_short = False
    pad_to: int | None = None
    squeezes_padding = False
    enlarges_once = False
    align_corners = False
    background_score: float
    logit_scale: float
    area_threshold: float
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        clip: DualEncoder,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        mask_shift: float,
        mask_scale: float,
    ):
        """Build it from its parts; for the arguments and errors see ZeroShotSegmentor."""
        super().__init__()
        check_values("MODEL", PIXEL_MEAN=pixel_mean, PIXEL_STD=pixel_std)
        check_values("MODEL.CLIP", MASK_SCALE=mask_scale)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.clip = clip
        self.check_dtype()
        self.mask_shift = mask_shift
        self.mask_scale = mask_scale
        self.refiner: Refiner | None = None

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def check_dtype(self) -> None:
        """Raise a ValueError unless weights are fp32: they are not after `half()`, or under another default dtype."""
        firsts = [next(part.parameters(), None) for part in self.children()]  # of each part one, to be quick
        for weight in (self.pixel_mean, *firsts):
            if weight is not None and weight.is_floating_point() and weight.dtype is not torch.float32:
                raise ValueError(
                    f"The model has weights of {weight.dtype}; expected torch.float32: build it under "
                    "torch.set_default_dtype(torch.float32), and leave out half(), double() and the like. For half "
                    "precision, set TEST.ZERO_SHOT.PRECISION, or SOLVER.AMP.ENABLED in training."
                )

    # ------------------------------------------------------------------------------------ what a subclass says

    def encode(self, images: Tensor) -> CropFeatures:
        """Compute what does not depend on words, of normalized images [B, 3, H, W]."""
        raise NotImplementedError

    def prepare(self, features: CropFeatures, text: Tensor) -> CropFeatures:
        """Add what depends on all words together, given their text features [W, D]; by default nothing.

        It is called once for a vocabulary, and what it gives is held: it should be small for thousands of words.
        """
        return features

    def predict_masks(self, features: CropFeatures, text: Tensor, words: slice) -> Tensor:
        """Predict scores of a part of the words.

        Args:
            features: of crops, from `encode` and `prepare`.
            text: text features of all words [W, D].
            words: the k words that are wanted.

        Returns:
            scores [B, k, h, w]: masks in 0..1, or similarities.
        """
        raise NotImplementedError

    def predict_background(self, features: CropFeatures, words: Tensor) -> Tensor:
        """Predict the background's own scores [B, 1, h, w]; it is asked for where `has_background_map`.

        They are averaged over windows and enlarged as a word's, and a pixel is background where no word is above them.

        Args:
            features: of crops, from `encode` and `prepare`.
            words: indices of the background's words, int64 [b]; there may be none.
        """
        raise NotImplementedError

    def dense_features(self, features: CropFeatures) -> Tensor:
        """Return the features [B, D, h, w] of crops, from `encode`, that are compared with those of texts."""
        return features.clip_features

    # ------------------------------------------------------------------------------------ features

    def pixel_features(self, images: Tensor | Sequence[Tensor]) -> CropMap:
        """Compute features in the space of texts: their products with `text_features` are cosines.

        Gradients flow to the images and to what is trained. An image is seen as a whole, without windows: one much
        larger than those that the model was trained on gets worse features.

        Args:
            images: [B, 3, H, W] or B of [3, H, W], RGB, 0..255.

        Returns:
            features fp32 [B, D, h, w] of length 1, of the padded images.
        """
        features, place = self.encode_crops(self.normalize_images(list(images)))
        return CropMap(normalize(self.dense_features(features), 1), *place)

    # ------------------------------------------------------------------------------------ refinement

    def refines(self, stage: str) -> bool:
        """Return whether there is a refiner for scores of this stage, see Refiner."""
        return bool(self._refiners(stage))

    def _refiners(self, stage: str) -> list[Refiner]:
        parts = () if self.refiner is None else self.refiner.parts
        return [part for part in parts if part.stage == stage]

    def bind_refiner(
        self, stage: str, images: Tensor, input_per_image: Mapping | None = None, *corners: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Return what refines the scores of images at a stage; elsewhere than at the refiner's they stay as they are.

        Args:
            stage: see Refiner.
            images: normalized, [B, 3, H, W].
            input_per_image: see Refiner.bind, and so is `corners`.

        Returns:
            a function of scores [B, K, h, w]. What depends on images alone is computed once.
        """
        bound = [refiner.bind(images, input_per_image, *corners) for refiner in self._refiners(stage)]
        return partial(_call_in_turn, bound) if bound else keep_scores

    # ------------------------------------------------------------------------------------ crops

    def normalize_images(self, images: list[Tensor]) -> Tensor:
        """Normalize images [3, H, W] of one size, 0..255 -> fp32 [B, 3, H, W] on the model's device.

        Raises:
            ValueError: images of another shape, or of several sizes; or see check_dtype.
        """
        self.check_dtype()
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3 or image.shape != images[0].shape:
                shapes = sorted({tuple(image.shape) for image in images})
                raise ValueError(f"'image' must be a tensor [3, H, W], of one size in a training batch; got {shapes}.")
        batch = torch.stack(images).to(self.device)  # one copy, of bytes where images have bytes
        return batch.float().sub_(self.pixel_mean).div_(self.pixel_std)

    def denormalize_images(self, images: Tensor) -> Tensor:
        """Bring normalized images [B, 3, H, W] back to 0..255; rounding errors may leave that range."""
        return images * self.pixel_std + self.pixel_mean

    def encode_crops(self, crops: Tensor) -> tuple[CropFeatures, CropPlace]:
        """Pad normalized crops [B, 3, H, W] of any size, as `pad_to` says, and encode them.

        Returns:
            their features, and where the crops are in a map of them.
        """
        patch_size, size = self.clip.patch_size, map_size(crops)
        multiple = self.pad_to or patch_size
        if min(size) < patch_size:
            multiple = max(multiple, patch_size)
        if self.squeezes_padding:
            black = -self.pixel_mean / self.pixel_std
            place = CropPlace(size, (slice(None), slice(None)), self.align_corners)
            return self.encode(pad_below(crops, multiple, black)), place

        padded, place = pad_to_multiple(crops, multiple)
        return self.encode(padded), CropPlace(map_size(padded), place, self.align_corners)

    def crop_masks(self, features: CropFeatures, place: CropPlace, text: Tensor) -> Tensor:
        """Predict scores [B, W, H, W] of crops, at their own size.

        Args:
            features: of the crops, from encode_crops.
            place: of the crops, from encode_crops.
            text: text features of all words [W, D].
        """
        scores = self.predict_masks(self.prepare(features, text), text, slice(None))
        return CropMap(scores, *place).enlarge()

    # ------------------------------------------------------------------------------------ CLIP's own features

    def clip_similarity(self, features: Tensor, text: Tensor) -> Tensor:
        """Compute cosines fp32 [B, K, h, w] of dense features [B, D, h, w], normalized, and text features [K, D]."""
        with torch.autocast(features.device.type, enabled=False):  # scales make much of small errors
            return torch.einsum("bdhw,kd->bkhw", features, normalize(text, 1))

    def dense_clip_masks(self, features: Tensor, text: Tensor) -> Tensor:
        """Predict CLIP's own masks [B, K, h, w] from its dense features [B, D, h, w], normalized."""
        return self.to_masks(self.clip_similarity(features, text))

    def to_masks(self, similarity: Tensor) -> Tensor:
        """Make masks in 0..1 of similarities of CLIP's own."""
        return torch.sigmoid((similarity - self.mask_shift) * self.mask_scale)
