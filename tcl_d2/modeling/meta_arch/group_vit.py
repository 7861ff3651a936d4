"""GroupViT (Xu et al., CVPR 2022): segments are groups of tokens, each of the class that its feature is nearest to."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import open_clip
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.logger import log_first_n
from torch import Tensor

from ..grounder import normalize
from ..groupvit import FrozenGroupViT, build_groupvit, check_groupvit
from ..inference import resize_scores
from ..segmentor import ZeroShotSegmentor

_WORDS_PER_CROP = 5  # those that fit the whole crop best; each group is of one of these


class GroupFeatures(NamedTuple):
    """What is computed of a batch of crops once.

    Attributes:
        images: normalized crops [B, 3, H, W].
        group_of_pixel: index of the group of each pixel, uint8 [B, H, W].
        group_features: of each group, normalized, fp32 [B, G, D].
        image_features: of the whole crop, normalized, fp32 [B, D].
        table: score of each word in each group, fp32 [B, W, G].
    """

    images: Tensor
    group_of_pixel: Tensor
    group_features: Tensor
    image_features: Tensor
    table: Tensor | None = None


@META_ARCH_REGISTRY.register()
class GroupViT(ZeroShotSegmentor):
    """Segments by GroupViT's groups: each pixel has the scores of its group, which are those of the official release.

    They are probabilities among all words of the vocabulary. The background is where a group has no probable word, with
    a limit of each crop's own.
    """

    scores_depend_on_vocabulary = True
    has_background_map = True

    @classmethod
    def build_encoder(cls, cfg: CfgNode) -> FrozenGroupViT:
        return FrozenGroupViT(build_groupvit(cfg.MODEL.GROUPVIT.WEIGHTS, cfg.MODEL.GROUPVIT.NUM_HEADS))

    @classmethod
    def build_tokenizer(cls, cfg: CfgNode) -> Callable[[list[str]], Tensor]:
        return open_clip.SimpleTokenizer()  # CLIP's

    @classmethod
    def check_encoder(cls, cfg: CfgNode) -> None:
        check_groupvit(cfg.MODEL.GROUPVIT.WEIGHTS)

    def encode(self, images: Tensor) -> GroupFeatures:
        groups = self.clip.encode_image(images)
        maps = self.bind_refiner("crop", images)(resize_scores(groups.maps, images.shape[-2:]))
        group_of_pixel = maps.argmax(1).to(torch.uint8)

        group_features = normalize(groups.group_features.float(), 2)
        return GroupFeatures(images, group_of_pixel, group_features, normalize(groups.image_features.float(), 1))

    def prepare(self, features: GroupFeatures, text: Tensor) -> GroupFeatures:
        if len(text) == 1:
            message = "GroupViT compares words with each other: with a single one, each pixel is of that word"
            log_first_n(logging.WARNING, message, name=__name__, key="message")

        with torch.autocast(text.device.type, enabled=False):  # scales make much of small errors
            scaled_text = self.clip.logit_scale * normalize(text, 1).float()
            group_logits = features.group_features @ scaled_text.T
            image_logits = features.image_features @ scaled_text.T

        # Probabilities among all words, times those among the words that fit the whole crop best
        top = image_logits.topk(min(_WORDS_PER_CROP, len(text)), 1).indices
        is_left_out = torch.ones_like(image_logits, dtype=torch.bool).scatter_(1, top, False)
        group_logits_of_top = group_logits.masked_fill(is_left_out[:, None], -torch.inf)
        table = group_logits.softmax(2) * group_logits_of_top.softmax(2)
        return features._replace(table=table.transpose(1, 2))

    def predict_masks(self, features: GroupFeatures, text: Tensor, words: slice) -> Tensor:
        return _look_up(features.table[:, words], features.group_of_pixel)

    def predict_background(self, features: GroupFeatures) -> Tensor:
        """Predict 1 where a pixel's group has no word above the threshold, and 0 elsewhere, [B, 1, H, W].

        The threshold is the constant score of the background, but not above the best score of the crop: the surest
        group is never background.
        """
        best = features.table.amax(1, keepdim=True)
        threshold = best.amax(2, keepdim=True).clamp(max=self.background_score)
        return _look_up((best < threshold).float(), features.group_of_pixel)


def _look_up(table: Tensor, group_of_pixel: Tensor) -> Tensor:
    """Give each pixel the values of its group: [B, K, G], uint8 [B, H, W] -> [B, K, H, W]."""
    indices = group_of_pixel.flatten(1).long()[:, None].expand(-1, table.shape[1], -1)
    return table.gather(2, indices).unflatten(2, group_of_pixel.shape[1:])
