"""The base of TIPSv2 and dino.txt: a softmax over words of enlarged cosines, before windows are averaged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from ...config.ranges import check_values
from ...utils.errors import expect
from ...utils.tensors import weights_by_name
from ..encoders.base import FrozenDualEncoder
from ..functional import map_size, normalize, resize_scores
from ..segmentor.base import ZeroShotSegmentor
from ..segmentor.crops import CropPlace

_WORDS_AT_ONCE = 64  # whose cosines are held at the windows' size


class PatchTextEncoder(FrozenDualEncoder):
    """The encoders of a method: an nn.ModuleDict whose text tower is "text"."""

    def text_weights(self) -> dict[str, Tensor]:
        weights = weights_by_name(self.model)
        return {name: weights[name] for name in weights if name.startswith("text.")}

    def encode_patches(self, images: Tensor) -> Tensor:
        """Compute the features [B, D, h, w] of the patches of normalized images, not normalized."""
        raise NotImplementedError


class PatchFeatures(NamedTuple):
    """What is computed once for a batch of crops."""

    images: Tensor  # normalized crops, stretched to whole patches, [B, 3, H', W']
    clip_features: Tensor  # of each patch, normalized, [B, D, h, w]
    refine: Callable[[Tensor], Tensor]  # scores [B, K, H, W] by the crops' edges
    size: tuple[int, int]  # of the crops before they were stretched
    log_sum: Tensor | Any = None  # of the exponentials of all words' cosines, [B, 1, H, W]


class PatchTextSegmentor(ZeroShotSegmentor):
    """Segments by the cosines of a text and of the patches that an encoder's `encode_patches` gives.

    Crops that are no whole patches are stretched, not padded.
    """

    clip: PatchTextEncoder

    @configurable
    def __init__(self, *, scores: str = "probability", **zero_shot):
        """Build the segmentor from its parts.

        Args:
            scores: "probability" for a softmax over all words, without a scale, of cosines that were enlarged to the
                window (the releases' rule); "cosine" for the cosines, with which words do not depend on each other.
            zero_shot: the arguments of ZeroShotSegmentor.
        """
        super().__init__(**zero_shot)
        check_values("MODEL.TIPS", SCORES=scores)
        is_twice = scores == "probability" and self.logit_scale > 0
        expected = "0: MODEL.TIPS.SCORES probability is a softmax itself"
        expect(not is_twice, "TEST.ZERO_SHOT.LOGIT_SCALE", self.logit_scale, expected)
        self.scores = scores

    @property
    def scores_depend_on_vocabulary(self) -> bool:
        return self.scores == "probability"

    @property
    def enlarges_once(self) -> bool:
        return self.scores == "cosine" and self.crop_size == 0 and not self.refines("input")

    def encode_crops(self, crops: Tensor) -> tuple[PatchFeatures, CropPlace]:
        """Stretch normalized crops [B, 3, H, W] of any size to whole patches, bicubic, and encode them."""
        size = map_size(crops)
        whole = tuple(side + -side % self.clip.patch_size for side in size)
        if whole != size:
            crops = F.interpolate(crops, whole, mode="bicubic", align_corners=False)
        return self.encode(crops)._replace(size=size), CropPlace(size, (slice(None), slice(None)))

    def encode(self, images: Tensor) -> PatchFeatures:
        features = normalize(self.clip.encode_patches(images), 1)
        return PatchFeatures(images, features, self.bind_refiner("crop", images), map_size(images))

    def prepare(self, features: PatchFeatures, text: Tensor) -> PatchFeatures:
        if self.scores == "cosine":
            return features
        sums = [self._cosines(features, part).logsumexp(1, keepdim=True) for part in text.split(_WORDS_AT_ONCE)]
        return features._replace(log_sum=torch.cat(sums, 1).logsumexp(1, keepdim=True))

    def predict_masks(self, features: PatchFeatures, text: Tensor, words: slice) -> Tensor:
        if self.scores == "cosine":
            return features.refine(self.clip_similarity(features.clip_features, text[words]))
        return features.refine((self._cosines(features, text[words]) - features.log_sum).exp_())

    def _cosines(self, features: PatchFeatures, text: Tensor) -> Tensor:
        """Compute cosines [B, K, H, W], enlarged to the windows."""
        return resize_scores(self.clip_similarity(features.clip_features, text), features.size)
