"""Talk2DINO (Barsellotti et al., ICCV 2025, arXiv 2411.19331): DINO's patches against CLIP's projected texts."""

import logging
from collections.abc import Callable
from copy import copy
from functools import reduce
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from ...config.ranges import check_values
from ...utils.errors import expect
from ...utils.tensors import weights_by_name
from ...utils.upstream import without_parameter
from ..encoders.base import FrozenDualEncoder
from ..encoders.clip_loading import build_clip
from ..encoders.vision import DINOV2_POSITIONS, VisionEncoder, build_vision_model, check_vision_model
from ..functional import map_size, normalize, resize_scores, tokens_to_map
from ..segmentor.base import ZeroShotSegmentor
from .attention import ClassAttention, Extremes
from .loss import contrast
from .projection import Projection, load_projection

logger = logging.getLogger(__name__)
_KEY = "MODEL.TALK2DINO"
_WORDS_AT_ONCE = 256


class TextTower(FrozenDualEncoder):
    """CLIP's text tower alone, whose texts are compared with patches of another model.

    Attributes:
        width: of CLIP's text features.
        embed_dim: of the features that are compared; patch_size is the other model's.
    """

    def __init__(self, model: Any, embed_dim: int, patch_size: int):
        """Freeze the text tower of an open_clip model."""
        width, model = model.visual.output_dim, copy(model)
        without_parameter(model, "logit_scale")
        model._modules = {name: module for name, module in model._modules.items() if name != "visual"}
        super().__init__(model)
        self.width = width
        self.embed_dim = embed_dim
        self.patch_size = patch_size

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)

    def text_weights(self) -> dict[str, Tensor]:
        return weights_by_name(self.model)


class PatchFeatures(NamedTuple):
    """What is computed once for a batch of crops."""

    images: Tensor  # normalized crops [B, 3, H, W]
    clip_features: Tensor  # of each patch, normalized, in the space of projected texts, [B, C, h, w]
    refine: Callable[[Tensor], Tensor]  # scores [B, K, h, w] by the crops' edges
    attention: ClassAttention | None = None  # for the background's cleaning
    extremes: Extremes | Any = None  # over all words


@META_ARCH_REGISTRY.register()
class Talk2DINO(ZeroShotSegmentor):
    """Segments by sigmoid(cosine) of patches of a frozen DINOv2 or DINOv3 and CLIP's texts, which are projected."""

    pad_to = 1  # windows are stretched
    align_corners = True

    @configurable
    def __init__(
        self,
        *,
        vision: VisionEncoder,
        projection: Projection,
        image_size: int = 448,
        cleaning: float = 0.0,
        divide_loss: bool = True,
        **zero_shot,
    ):
        """Build the segmentor from its parts.

        Args:
            vision: the image model; its first token is the class's.
            image_size: side of the square that each window is stretched to, in pixels.
            cleaning: weight of the background's cleaning; 0 for none. With it, a word's scores depend on the others.
            divide_loss: see `contrast`.
            zero_shot: the arguments of ZeroShotSegmentor, with a TextTower for `clip`.
        """
        super().__init__(**zero_shot)
        check_values(_KEY, IMAGE_SIZE=image_size, CLEANING=cleaning)
        is_whole = image_size % vision.patch_size == 0
        expect(is_whole, f"{_KEY}.IMAGE_SIZE", image_size, f"a multiple of the patches' {vision.patch_size} pixels")
        self.vision = vision
        self.projection = projection
        self.embed_vocabulary.projection = projection
        self.image_size = image_size
        self.cleaning = cleaning
        self.divide_loss = divide_loss

    @classmethod
    def from_config(cls, cfg: CfgNode, clip: TextTower | None = None) -> dict:
        settings = cfg.MODEL.TALK2DINO
        vision = VisionEncoder(
            build_vision_model(_KEY, settings.NAME, settings.PRETRAINED),
            DINOV2_POSITIONS,
            cfg.MODEL.PIXEL_MEAN,
            cfg.MODEL.PIXEL_STD,
        )
        has_class = vision.model.cls_token is not None
        expect(has_class, f"{_KEY}.NAME", settings.NAME, "a model with a class token")

        if clip is None:
            model = build_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED)
            clip = TextTower(model, vision.model.embed_dim, vision.patch_size)
        projection = Projection(clip.width, clip.embed_dim)
        if settings.PROJECTION:
            models = f"the texts of MODEL.CLIP.NAME '{cfg.MODEL.CLIP.NAME}' and {_KEY}.NAME '{settings.NAME}'"
            load_projection(projection, f"{_KEY}.PROJECTION", settings.PROJECTION, models)
        elif not cfg.MODEL.WEIGHTS:
            logger.warning("%s.PROJECTION and MODEL.WEIGHTS are empty: the projection has random weights", _KEY)
        return {
            **super().from_config(cfg, clip),
            "vision": vision,
            "projection": projection,
            "image_size": settings.IMAGE_SIZE,
            "cleaning": settings.CLEANING,
            "divide_loss": settings.DIVIDE_LOSS,
        }

    @classmethod
    def check_encoder(cls, cfg: CfgNode) -> None:
        super().check_encoder(cfg)
        check_vision_model(_KEY, cfg.MODEL.TALK2DINO.NAME)

    @property
    def scores_depend_on_vocabulary(self) -> bool:
        return self.cleaning > 0

    # ------------------------------------------------------------------------------------ training

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Compute the loss of the projection by name in training; in inference see ZeroShotSegmentor.forward.

        Args:
            batched_inputs: a dict for each caption, with features that were computed before:

                text: of the caption, from encode_captions, [D].
                heads: of its image, from encode_squares, [heads, C].
        """
        if not self.training:
            return super().forward(batched_inputs)
        text, heads = (
            torch.stack([inputs[name] for inputs in batched_inputs]).to(self.device).float()
            for name in ("text", "heads")
        )
        return {"loss_contrast": contrast(self.projection(text), heads, self.divide_loss)}

    @torch.no_grad()
    def encode_squares(self, images: Tensor) -> Tensor:
        """Compute the embeddings of images by each head, fp32 [B, heads, C]: RGB in 0..255, [B, 3, size, size]."""
        _, attention = self.attend(self.normalize_images(list(images)))
        return attention.pool()

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> Tensor:
        """Compute CLIP's features of captions as they are, not normalized, fp32 [N, D]."""
        return self.clip.encode_text(self.tokenizer(captions).to(self.device)).float()

    # ------------------------------------------------------------------------------------ scores

    def encode(self, images: Tensor) -> PatchFeatures:
        squares = stretch(images, self.image_size)
        refine = self.bind_refiner("crop", images)
        if not self.cleaning:
            return PatchFeatures(images, normalize(self.vision(squares), 1), refine)

        patches, attention = self.attend(squares)
        return PatchFeatures(images, normalize(patches, 1), refine, attention)

    def attend(self, squares: Tensor) -> tuple[Tensor, ClassAttention]:
        """Compute the patches' features [B, C, h, w], and the class token's attention, of whole patches' images."""
        block = self.vision.last_block(squares)
        patches = tokens_to_map(block.finish(), self.vision.grid(squares))
        return patches, ClassAttention.read(block, patches.flatten(2).transpose(1, 2))

    def prepare(self, features: PatchFeatures, text: Tensor) -> PatchFeatures:
        if features.attention is None:
            return features
        parts = [
            features.attention.extremes(self._scores(features, part).flatten(2), part)
            for part in text.split(_WORDS_AT_ONCE)
        ]
        return features._replace(extremes=reduce(Extremes.merge, parts))

    def predict_masks(self, features: PatchFeatures, text: Tensor, words: slice) -> Tensor:
        scores = self._scores(features, text[words])
        if features.attention is not None:
            flat = features.attention.clean(scores.flatten(2), text[words], features.extremes, self.cleaning)
            scores = flat.view_as(scores)

        # A refiner sees them at the crop's size
        if self.refines("crop"):
            scores = resize_scores(scores, map_size(features.images), self.align_corners)
        return features.refine(scores)

    def _scores(self, features: PatchFeatures, text: Tensor) -> Tensor:
        return self.clip_similarity(features.clip_features, text).sigmoid()


def stretch(images: Tensor, side: int) -> Tensor:
    """Resize images [B, 3, H, W] to a square, bilinear with antialias; nothing is done where they have its size."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
