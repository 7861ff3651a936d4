"""GroupViT (Xu et al., CVPR 2022): segments are groups of tokens, each of the class that its feature is nearest to."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.evaluation import inference_context
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...segmentation.drawing import draw_groups, draw_text, enlarge
from ...utils.events import put_picture
from ..encoders.text import batch_tokens
from ..functional import gather, info_nce, map_size, normalize, resize_scores
from ..segmentor.base import ZeroShotSegmentor
from .encoder import GroupViTEncoder
from .loading import build_groupvit, check_groupvit, is_file, load_official
from .multi_label import MultiLabelLoss
from .untrained import build_untrained_groupvit

logger = logging.getLogger(__name__)
_SIZES = (  # keys of MODEL.GROUPVIT, by which a model is built that is not the hub's
    *("IMAGE_SIZE", "PATCH_SIZE", "WIDTH", "DEPTHS", "GROUPS", "NUM_HEADS"),
    *("TEXT_WIDTH", "TEXT_DEPTH", "PROJECTION_WIDTH", "EMBED_DIM"),
)
_WORDS_PER_CROP = 5  # those that fit the whole crop best; each group is of one of these


class GroupFeatures(NamedTuple):
    """What is computed once for a batch of crops; features are normalized, in fp32."""

    images: Tensor  # normalized crops [B, 3, H, W]
    group_of_pixel: Tensor  # uint8 [B, H, W]
    group_features: Tensor  # [B, G, D]
    image_features: Tensor  # of whole crops, [B, D]
    table: Tensor | Any = None  # score of each word in each group, [B, W, G]


@META_ARCH_REGISTRY.register()
class GroupViT(ZeroShotSegmentor):
    """Segments by GroupViT's groups: each pixel has the scores of its group, by the official release's rule.

    Scores are probabilities among all words of the vocabulary. The background is where a group has no probable word.
    """

    scores_depend_on_vocabulary = True
    has_background_map = True
    clip: GroupViTEncoder

    @configurable
    def __init__(self, *, multi_label: bool = False, micro_batch_size: int = 0, vis_period: int = 0, **zero_shot):
        """Build GroupViT from its parts.

        Args:
            multi_label: whether images are contrasted with nouns of their captions too.
            micro_batch_size: images whose activations are held at once in training; 0 for all.
            vis_period: iterations between pictures of groups; 0 for none.
            zero_shot: the arguments of ZeroShotSegmentor, with a GroupViTEncoder for `clip`.
        """
        super().__init__(**zero_shot)
        self.losses = nn.ModuleDict({"MultiLabelLoss": MultiLabelLoss()} if multi_label else {})
        self.micro_batch_size = micro_batch_size
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode, clip: GroupViTEncoder | None = None) -> dict:
        arguments = super().from_config(cfg, clip)
        _check_tokenizer(arguments["clip"], arguments["tokenizer"], cfg.MODEL.CLIP.NAME)
        return {
            **arguments,
            "multi_label": cfg.MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS > 0,
            "micro_batch_size": cfg.SOLVER.IMS_PER_MICRO_BATCH,
            "vis_period": cfg.VIS_PERIOD,
        }

    @classmethod
    def build_encoder(cls, cfg: CfgNode) -> GroupViTEncoder:
        weights = cfg.MODEL.GROUPVIT.WEIGHTS
        if weights and not is_file(weights):
            return GroupViTEncoder(build_groupvit(weights))

        # The official release's file does not tell all sizes
        tokenizer = cls.build_tokenizer(cfg)
        model = build_untrained_groupvit(
            **{key.lower(): cfg.MODEL.GROUPVIT[key] for key in _SIZES},
            vocab_size=tokenizer.vocab_size,
            context_length=tokenizer.context_length,
        )
        if weights:
            load_official(model, weights)
        elif not cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.GROUPVIT.WEIGHTS and MODEL.WEIGHTS are empty: the GroupViT has random weights")
        return GroupViTEncoder(model)

    @classmethod
    def check_encoder(cls, cfg: CfgNode) -> None:
        check_groupvit(cfg.MODEL.GROUPVIT.WEIGHTS)

    # ------------------------------------------------------------------------------------ training

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Compute the losses of a batch by name in training; in inference see ZeroShotSegmentor.forward.

        Args:
            batched_inputs: a dict for each image:

                image: Tensor [3, H, W], RGB, 0..255, one size for the batch.
                caption: its text (str), or
                tokens: its text's tokens, int [context].
                noun_tokens: tokens of prompted nouns of its text, int [K, context], for the multi-label loss.
        """
        if not self.training:
            return super().forward(batched_inputs)

        images = self.normalize_images([input_per_image["image"] for input_per_image in batched_inputs])
        tokens = batch_tokens(batched_inputs, self.tokenizer, self.device)
        losses = self.compute_losses(images, torch.cat([tokens[:, None], self._noun_tokens(batched_inputs, tokens)], 1))

        captions = [input_per_image.get("caption", "") for input_per_image in batched_inputs]
        draw = partial(self._draw_groups, images, captions)
        put_picture("image, groups of each stage, caption", self.vis_period, draw)
        return losses

    def _noun_tokens(self, batched_inputs: list[dict], tokens: Tensor) -> Tensor:
        """Return the tokens of nouns [B, K, context]; K is 0 without the multi-label loss."""
        if not self.losses:
            return tokens.new_empty(len(tokens), 0, tokens.shape[1])
        if not all("noun_tokens" in input_per_image for input_per_image in batched_inputs):
            raise ValueError(
                "The multi-label loss (MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS) needs 'noun_tokens' (Tensor[K, context]) "
                "with every image, as ImageTextDatasetMapper gives them."
            )
        return torch.stack([input_per_image["noun_tokens"] for input_per_image in batched_inputs]).to(tokens)

    def compute_losses(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Compute the losses by name, over the images and texts of all processes.

        Tokens are gathered before the projections, so that their batch norm is over the global batch too, with the
        same running statistics in all processes.

        Args:
            images: normalized, [B, 3, H, W], of whole patches.
            tokens: of the texts of each image, its caption first, int [B, T, context].
        """
        pooled_image = gather(self._encode_in_parts(self.clip.pool_image, images))
        pooled_text = gather(self._encode_in_parts(self._pool_texts, tokens))
        if len(pooled_image) == 1:
            raise ValueError("SOLVER.IMS_PER_BATCH is 1; expected at least 2 pairs, which GroupViT contrasts.")

        image = normalize(self.clip.project_image(pooled_image), 1)
        texts = normalize(self.clip.project_text(pooled_text.flatten(0, 1)), 1).unflatten(0, pooled_text.shape[:2])
        with torch.autocast(image.device.type, enabled=False):  # the scale magnifies small errors
            losses = {"loss_contrast": info_nce(image @ texts[:, 0].T, self.clip.model.logit_scale)}
            if self.losses:
                losses["loss_multi_label"] = self.losses["MultiLabelLoss"](image, texts[:, 1:])
        return losses

    def _pool_texts(self, tokens: Tensor) -> Tensor:
        """Encode the texts of images, int [b, T, context] -> [b, T, C]."""
        return self.clip.pool_text(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])

    def _encode_in_parts(self, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Encode a batch, holding the activations of one micro-batch at a time; fp32."""
        if not 0 < self.micro_batch_size < len(inputs):
            return encode(inputs).float()

        # Each part is computed again for its gradient, with the same noise
        parts = [checkpoint(encode, part, use_reentrant=False) for part in inputs.split(self.micro_batch_size)]
        return torch.cat(parts).float()

    @torch.no_grad()
    def _draw_groups(self, images: Tensor, captions: Sequence[str], count: int = 4) -> np.ndarray:
        """Draw images, the groups of each stage, without noise, and captions: RGB uint8 [3, count*H, ...]."""
        images = images[:count]
        with inference_context(self.clip):
            stages = self.predict_groups(images)
        pixels = self.denormalize_images(images).clamp(0, 255).byte()

        rows = []
        for i, image in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):
            panels = [enlarge(image), *(draw_groups(image, stage[i].cpu().numpy()) for stage in stages)]
            rows.append(np.concatenate([*panels, draw_text(captions[i], len(panels[0]), 260)], axis=1))
        return np.concatenate(rows).transpose(2, 0, 1)

    # ------------------------------------------------------------------------------------ inference

    def encode(self, images: Tensor) -> GroupFeatures:
        groups = self.clip.encode_image(images)
        maps = self.bind_refiner("crop", images)(resize_scores(groups.maps, map_size(images)))
        group_of_pixel = maps.argmax(1).to(torch.uint8)

        group_features = normalize(groups.group_features.float(), 2)
        return GroupFeatures(images, group_of_pixel, group_features, normalize(groups.image_features.float(), 1))

    def predict_groups(self, images: Tensor) -> list[Tensor]:
        """Predict the group of each pixel in each grouping stage: normalized [B, 3, H, W] -> int64 [B, H, W] each."""
        assignments = self.clip.encode_groups(images)[1]
        stages = self.clip.follow_patches(images, assignments)
        return [resize_scores(maps, map_size(images)).argmax(1) for maps in stages]

    def dense_features(self, features: GroupFeatures) -> Tensor:
        """Return the feature of the group of each patch's center, [B, D, h, w]."""
        step = self.clip.patch_size
        group_of_patch = features.group_of_pixel[:, step // 2 :: step, step // 2 :: step]
        return _look_up(features.group_features.transpose(1, 2), group_of_patch)

    def prepare(self, features: GroupFeatures, text: Tensor) -> GroupFeatures:
        if len(text) == 1:
            message = "GroupViT compares words with each other: with a single one, each pixel is of that word"
            log_first_n(logging.WARNING, message, name=__name__, key="message")

        with torch.autocast(text.device.type, enabled=False):  # the scale magnifies small errors
            scaled_text = self.clip.logit_scale * normalize(text, 1).float()
            group_logits = features.group_features @ scaled_text.T
            image_logits = features.image_features @ scaled_text.T

        # Probabilities among all words, times those among the words that fit the whole crop best
        top = image_logits.topk(min(_WORDS_PER_CROP, len(text)), 1).indices
        is_left_out = torch.ones_like(image_logits, dtype=torch.bool).scatter_(1, top, 0)
        group_logits_of_top = group_logits.masked_fill(is_left_out[:, None], -torch.inf)
        table = group_logits.softmax(2) * group_logits_of_top.softmax(2)
        return features._replace(table=table.transpose(1, 2))

    def predict_masks(self, features: GroupFeatures, text: Tensor, words: slice) -> Tensor:
        return _look_up(features.table[:, words], features.group_of_pixel)

    def predict_background(self, features: GroupFeatures, words: Tensor) -> Tensor:
        """Predict 1 where a pixel's group has no word above the background's score, and 0 elsewhere, [B, 1, H, W].

        The threshold is at most the best score of the crop: the surest group is never background.
        """
        best = features.table.amax(1, keepdim=True)
        threshold = best.amax(2, keepdim=True).clamp(max=self.background_score)
        return _look_up((best < threshold).float(), features.group_of_pixel)


def _check_tokenizer(clip: GroupViTEncoder, tokenizer: Callable, name: str) -> None:
    """Check that a tokenizer has all tokens of the text encoder: another one would give wrong texts."""
    vocab_size = clip.model.config.text_config.vocab_size
    if tokenizer.vocab_size < vocab_size:
        raise ValueError(
            f"MODEL.CLIP.NAME is '{name}', whose tokenizer has {tokenizer.vocab_size:,} tokens, but GroupViT's text "
            f"encoder knows {vocab_size:,}; expected a CLIP with the tokenizer that it was trained with, such as "
            "ViT-B-16 for the released weights."
        )


def _look_up(table: Tensor, group_of_pixel: Tensor) -> Tensor:
    """Give each pixel the values of its group: [B, K, G], uint8 [B, H, W] -> [B, K, H, W]."""
    indices = group_of_pixel.flatten(1).long()[:, None].expand(-1, table.shape[1], -1)
    return table.gather(2, indices).unflatten(2, group_of_pixel.shape[1:])
