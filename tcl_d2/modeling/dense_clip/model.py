"""DenseCLIP: CLIP's own dense features as a segmentor. A dense head says how they are made, and what is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from ...config.ranges import check_values
from ...utils.errors import expect
from ..encoders.clip import FrozenCLIP, project_smoothing_keys
from ..functional import normalize
from ..segmentor.base import ZeroShotSegmentor
from .heads import DenseHead, MaskCLIPHead, build_dense_head
from .refinement import SOFTMAX_SCALE, denoise_prompts, smooth_keys


class DenseFeatures(NamedTuple):
    """What is computed once for a batch of crops; `| Any` where the settings may leave a field None."""

    images: Tensor  # normalized crops [B, 3, H, W]
    clip_features: Tensor  # of each patch, normalized, [B, D, h, w]
    refine: Callable[[Tensor], Tensor]  # scores [B, K, h, w] by the crops' edges
    keys: Tensor | Any = None  # of each patch, for key smoothing, [B, h*w, C]
    scores: Tensor | Any = None  # of all words, where they depend on each other, [B, W, h, w]
    objects: Tensor | Any = None  # logits [B, 1, h, w]


@META_ARCH_REGISTRY.register()
class DenseCLIP(ZeroShotSegmentor):
    """Segments by the similarities of a text and CLIP's own features of each patch, as a dense head makes them."""

    clip: FrozenCLIP

    @configurable
    def __init__(
        self,
        *,
        head: DenseHead | None = None,
        scores: str = "mask",
        prompt_denoising: float = 0.0,
        key_smoothing: float = 0.0,
        **zero_shot,
    ):
        """Build the segmentor from its parts.

        Args:
            head: the rule of CLIP's last block; None for MaskCLIP's.
            scores: "cosine" for similarities as they are; "mask" for masks in 0..1, sigmoid((s - shift) * scale), as
                in TCL's comparison; "probability" for a softmax over all words, with CLIP's own scale, of each patch.
            prompt_denoising: threshold of MaskCLIP's prompt denoising; 0 for none. Likewise `key_smoothing`.
            zero_shot: the arguments of ZeroShotSegmentor.
        """
        super().__init__(**zero_shot)
        thresholds = {"PROMPT_DENOISING": prompt_denoising, "KEY_SMOOTHING": key_smoothing}
        check_values("MODEL.DENSE_CLIP", SCORES=scores, **thresholds)
        self.head = head or MaskCLIPHead()
        if key_smoothing > 0 and not self.head.keeps_grid:
            raise ValueError(
                f"MODEL.DENSE_CLIP.KEY_SMOOTHING needs features of CLIP's own patches, but {type(self.head).__name__} "
                "has a grid of its own: set it to 0, or take another head."
            )
        if len(self.clip.blocks) < self.head.num_blocks:
            raise ValueError(
                f"MODEL.DENSE_CLIP.HEAD: {type(self.head).__name__} computes the last {self.head.num_blocks} blocks, "
                f"but MODEL.CLIP has {len(self.clip.blocks)}."
            )
        is_twice = scores == "probability" and self.logit_scale > 0
        expected = "0: MODEL.DENSE_CLIP.SCORES probability is a softmax itself"
        expect(not is_twice, "TEST.ZERO_SHOT.LOGIT_SCALE", self.logit_scale, expected)
        self.scores = scores
        self.prompt_denoising = prompt_denoising
        self.key_smoothing = key_smoothing

    @classmethod
    def from_config(cls, cfg: CfgNode, clip: FrozenCLIP | None = None) -> dict:
        dense_clip = cfg.MODEL.DENSE_CLIP
        return {
            **super().from_config(cfg, clip),
            "head": build_dense_head(dense_clip.HEAD, cfg),
            "scores": dense_clip.SCORES,
            "prompt_denoising": dense_clip.PROMPT_DENOISING,
            "key_smoothing": dense_clip.KEY_SMOOTHING,
        }

    @property
    def pad_to(self) -> int | None:
        return self.head.pad_to

    @property
    def squeezes_padding(self) -> bool:
        return self.head.squeezes_padding

    @property
    def scores_depend_on_vocabulary(self) -> bool:
        return self.scores == "probability" or self.prompt_denoising > 0 or self.key_smoothing > 0

    @property
    def has_background_map(self) -> bool:
        return self.scores == "probability" and self.head.finds_objects

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Compute the losses by name of a head that is trained, in training; else see ZeroShotSegmentor.forward.

        Args:
            batched_inputs: a dict for each image:

                image: Tensor [3, H, W], RGB, 0..255, of whole patches, one size for the batch.
                others: what the head's compute_losses asks for.
        """
        has_weights = next(self.head.parameters(), None) is not None
        if not (self.training and has_weights):
            return super().forward(batched_inputs)
        images = self.normalize_images([input_per_image["image"] for input_per_image in batched_inputs])
        return self.head.compute_losses(self.clip, images, batched_inputs)

    def encode(self, images: Tensor) -> DenseFeatures:
        last = len(self.clip.blocks) - 1
        depth = last + 1 - self.head.num_blocks
        tokens = self.clip.forward_blocks(images, depth, position=self.head.position)
        if self.has_background_map:
            features, objects = self.head(self.clip, tokens, images, with_objects=True)
        else:
            features, objects = self.head(self.clip, tokens, images), None

        keys = None
        if self.key_smoothing > 0:
            keys = project_smoothing_keys(self.clip.blocks[last], self.clip.run_blocks(tokens, depth, last))
        refine = self.bind_refiner("crop", images)
        return DenseFeatures(images, normalize(features, 1), refine, keys, objects=objects)

    def prepare(self, features: DenseFeatures, text: Tensor) -> DenseFeatures:
        if not self.scores_depend_on_vocabulary:
            return features

        cosines = self.clip_similarity(features.clip_features, text)
        if self.prompt_denoising > 0:
            cosines = denoise_prompts(cosines, self.prompt_denoising)
        if self.key_smoothing > 0:  # which gives probabilities
            cosines = smooth_keys(cosines, features.keys, self.key_smoothing)
        elif self.scores == "probability":
            cosines = (SOFTMAX_SCALE * cosines).softmax(1)
        return features._replace(scores=cosines)

    def predict_masks(self, features: DenseFeatures, text: Tensor, words: slice) -> Tensor:
        if features.scores is None:
            scores = self.clip_similarity(features.clip_features, text[words])
        else:
            scores = features.scores[:, words]

        # Masks are enlarged as TCL's decoder does, so that refinement works at the same resolution for both
        if self.scores == "mask":
            scores = F.interpolate(self.to_masks(scores), scale_factor=4.0, mode="bilinear", align_corners=False)
        return features.refine(scores)

    def predict_background(self, features: DenseFeatures, words: Tensor) -> Tensor:
        """Predict 1 where no word reaches the background's score and there is no object, elsewhere as its own words."""
        is_background = (features.scores.amax(1, keepdim=True) < self.background_score) & (features.objects <= 0)
        own = F.pad(features.scores[:, words], (0, 0, 0, 0, 0, 1)).amax(1, keepdim=True)  # 0 without words
        return features.refine(own.masked_fill(is_background, 1))


@META_ARCH_REGISTRY.register()
class MaskCLIP(DenseCLIP):
    """DenseCLIP with MaskCLIP's head (Zhou et al., ECCV 2022), the baseline of TCL."""

    @classmethod
    def from_config(cls, cfg: CfgNode, clip: FrozenCLIP | None = None) -> dict:
        # Before the head is built: MODEL.DENSE_CLIP.HEAD may name one that needs weights of its own
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DENSE_CLIP.HEAD = "maskclip"
        return super().from_config(cfg, clip)
