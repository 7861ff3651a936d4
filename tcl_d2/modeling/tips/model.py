"""TIPSv2 (CVPR 2026) as a segmentor: values of the last block, and a softmax over words before windows are averaged."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from ...config.ranges import check_values
from ...utils.downloads import local_weights
from ...utils.errors import expect
from ..encoders.vision import check_vision_model
from ..encoders.weights import read_weights
from ..functional import normalize, resize_scores
from ..segmentor.base import ZeroShotSegmentor
from ..segmentor.crops import CropPlace
from .encoder import TIPSEncoder, build_image_tower
from .text import TIPSTokenizer, build_text_tower, find_tokenizer, import_transformers, load_text_tower

_WORDS_AT_ONCE = 64  # whose cosines are held at the windows' size


class TIPSFeatures(NamedTuple):
    """What is computed once for a batch of crops."""

    images: Tensor  # normalized crops, stretched to whole patches, [B, 3, H', W']
    clip_features: Tensor  # of each patch, normalized, [B, D, h, w]
    refine: Callable[[Tensor], Tensor]  # scores [B, K, H, W] by the crops' edges
    size: tuple[int, int]  # of the crops before they were stretched
    log_sum: Tensor | None = None  # of the exponentials of all words' cosines, [B, 1, H, W]


@META_ARCH_REGISTRY.register()
class TIPSv2(ZeroShotSegmentor):
    """Segments by the cosines of a text and the values of the last block, by its release's rule.

    Crops that are no whole patches are stretched, not padded.
    """

    @configurable
    def __init__(self, *, scores: str = "probability", **zero_shot):
        """Build the segmentor from its parts.

        Args:
            scores: "probability" for a softmax over all words, without a scale, of cosines that were enlarged to the
                window (the release's rule); "cosine" for the cosines, with which words do not depend on each other.
            zero_shot: the arguments of ZeroShotSegmentor, with a TIPSEncoder for `clip`.
        """
        super().__init__(**zero_shot)
        check_values("MODEL.TIPS", SCORES=scores)
        is_twice = scores == "probability" and self.logit_scale > 0
        expected = "0: MODEL.TIPS.SCORES probability is a softmax itself"
        expect(not is_twice, "TEST.ZERO_SHOT.LOGIT_SCALE", self.logit_scale, expected)
        self.scores = scores

    @classmethod
    def from_config(cls, cfg: CfgNode, clip: TIPSEncoder | None = None) -> dict:
        arguments = super().from_config(cfg, clip)
        tokens, known = arguments["tokenizer"].vocab_size, arguments["clip"].model["text"].config.vocab_size
        expected = f"one of at most {known:,} tokens, which the text tower knows"
        expect(tokens <= known, "MODEL.TIPS.TOKENIZER", f"a tokenizer of {tokens:,} tokens", expected)
        return {**arguments, "scores": cfg.MODEL.TIPS.SCORES}

    @classmethod
    def build_encoder(cls, cfg: CfgNode) -> TIPSEncoder:
        tips = cfg.MODEL.TIPS
        vision = build_image_tower(tips.NAME, tips.PRETRAINED)
        heads = tips.TEXT_HEADS or vision.blocks[0].attn.num_heads
        if tips.TEXT:
            text = load_text_tower(read_weights("MODEL.TIPS.TEXT", tips.TEXT), heads, tips.TEXT)
        else:
            width, vocab_size = vision.embed_dim, cls.build_tokenizer(cfg).vocab_size
            text = build_text_tower(width, tips.TEXT_DEPTH, 4 * width, heads, vocab_size)
        return TIPSEncoder(vision, text, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)

    @classmethod
    def build_tokenizer(cls, cfg: CfgNode) -> Callable[[list[str]], Tensor]:
        name = cfg.MODEL.TIPS.TOKENIZER
        return TIPSTokenizer(find_tokenizer(name)) if name else super().build_tokenizer(cfg)

    @classmethod
    def check_encoder(cls, cfg: CfgNode) -> None:
        tips = cfg.MODEL.TIPS
        import_transformers()
        check_vision_model("MODEL.TIPS", tips.NAME)
        for key, path in (("PRETRAINED", tips.PRETRAINED), ("TEXT", tips.TEXT)):
            if path not in ("", "timm"):
                local_weights(f"MODEL.TIPS.{key}", path)
        cls.build_tokenizer(cfg)

    @property
    def scores_depend_on_vocabulary(self) -> bool:
        return self.scores == "probability"

    @property
    def enlarges_once(self) -> bool:
        return self.scores == "cosine" and self.crop_size == 0 and not self.refines("input")

    def encode_crops(self, crops: Tensor) -> tuple[TIPSFeatures, CropPlace]:
        """Stretch normalized crops [B, 3, H, W] of any size to whole patches, bicubic, and encode them."""
        size = tuple(crops.shape[-2:])
        whole = tuple(side + -side % self.clip.patch_size for side in size)
        if whole != size:
            crops = F.interpolate(crops, whole, mode="bicubic", align_corners=False)
        return self.encode(crops)._replace(size=size), CropPlace(size, (slice(None), slice(None)))

    def encode(self, images: Tensor) -> TIPSFeatures:
        features = normalize(self.clip.encode_values(images), 1)
        return TIPSFeatures(images, features, self.bind_refiner("crop", images), tuple(images.shape[-2:]))

    def prepare(self, features: TIPSFeatures, text: Tensor) -> TIPSFeatures:
        if self.scores == "cosine":
            return features
        sums = [self._cosines(features, part).logsumexp(1, keepdim=True) for part in text.split(_WORDS_AT_ONCE)]
        return features._replace(log_sum=torch.cat(sums, 1).logsumexp(1, keepdim=True))

    def predict_masks(self, features: TIPSFeatures, text: Tensor, words: slice) -> Tensor:
        if self.scores == "cosine":
            return features.refine(self.clip_similarity(features.clip_features, text[words]))
        return features.refine((self._cosines(features, text[words]) - features.log_sum).exp_())

    def _cosines(self, features: TIPSFeatures, text: Tensor) -> Tensor:
        """Compute cosines [B, K, H, W], enlarged to the windows."""
        return resize_scores(self.clip_similarity(features.clip_features, text), features.size)
