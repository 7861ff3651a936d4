"""dino.txt (arXiv 2412.16334) on DINOv3: a head over frozen tokens, and a text tower whose second half meets patches.

Written from a description of the release. Nothing of it could be compared with the release's outputs or weights.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from open_clip.transformer import TextTransformer
from timm.layers import SwiGLU
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ...config.ranges import check_values
from ...utils.errors import expect
from ..encoders.vision import VisionEncoder, VisionModel, build_vision_model, check_vision_model
from ..functional import normalize, tokens_to_map
from .base import PatchTextEncoder, PatchTextSegmentor

logger = logging.getLogger(__name__)
_KEY = "MODEL.DINO_TXT"
_HEAD_BLOCKS = 2


def build_image_head(width: int, num_heads: int) -> nn.Module:
    """Build the head over all tokens of an image [B, p + h*w, C], which ends in a LayerNorm; with random weights.

    Its blocks know no places: they have no RoPE.
    """
    hidden = -(-8 * width // 3 // 64) * 64  # two thirds of four times the width, in whole 64s: 2752 for 1024
    norm = partial(nn.LayerNorm, eps=1e-5)
    mlp = {"mlp_ratio": hidden / width, "mlp_layer": SwiGLU, "act_layer": nn.SiLU}
    options = {"qkv_bias": False, "norm_layer": norm, "init_values": 1e-5}
    blocks = [Block(width, num_heads, **mlp, **options) for _ in range(_HEAD_BLOCKS)]
    return nn.Sequential(*blocks, norm(width))


class DinoTxtEncoder(PatchTextEncoder):
    """dino.txt's image tower with its head, and its text tower."""

    def __init__(
        self,
        vision: VisionModel,
        head: nn.Module,
        text: TextTransformer,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        patches: str = "head",
    ):
        """Freeze the parts.

        Args:
            vision: from build_vision_model, of width C.
            head: from build_image_head.
            text: tokens int [N, context] -> [N, 2 C].
            pixel_mean: RGB in 0..255 with which the images that come in were normalized; likewise `pixel_std`.
            patches: "head" for the head's patches, with which texts were trained; "backbone" for the image tower's,
                which the release's notebook takes.
        """
        super().__init__(nn.ModuleDict({"vision": vision, "head": head, "text": text}))
        check_values(_KEY, PATCHES=patches)
        self.vision = VisionEncoder(vision, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.embed_dim, self.patch_size = vision.embed_dim, self.vision.patch_size
        self.patches = patches

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens int [N, context] into the halves of unit vectors that meet patches, [N, C].

        The mean over prompts may be taken of these halves: cutting is linear.
        """
        return normalize(self.model["text"](tokens), 1)[:, self.embed_dim :]

    def encode_patches(self, images: Tensor) -> Tensor:
        """Compute the features [B, C, h, w] of normalized images."""
        tokens = self.vision.tokens(images)
        if self.patches == "head":
            tokens = self.model["head"](tokens)
        return tokens_to_map(tokens, self.vision.grid(images))


@META_ARCH_REGISTRY.register()
class DinoTxt(PatchTextSegmentor):
    """Segments by the cosines of the second half of a text's vector and patches, by the rule of dino.txt's notebook."""

    @classmethod
    def from_config(cls, cfg: CfgNode, clip: DinoTxtEncoder | None = None) -> dict:
        arguments = super().from_config(cfg, clip)
        halves = "False: each prompt's whole vector is normalized, and its half is not"
        expect(not arguments["normalize_prompts"], "TEST.ZERO_SHOT.NORMALIZE_PROMPTS", True, halves)
        return arguments

    @classmethod
    def build_encoder(cls, cfg: CfgNode) -> DinoTxtEncoder:
        dino = cfg.MODEL.DINO_TXT
        if not cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: dino.txt's head and text tower have random weights")
        vision = build_vision_model(_KEY, dino.NAME, dino.PRETRAINED)
        is_divisor = dino.TEXT_WIDTH % dino.TEXT_HEADS == 0
        expect(is_divisor, f"{_KEY}.TEXT_HEADS", dino.TEXT_HEADS, f"a divisor of TEXT_WIDTH {dino.TEXT_WIDTH}")

        width, tokenizer = vision.embed_dim, cls.build_tokenizer(cfg)
        text = TextTransformer(
            context_length=tokenizer.context_length,
            vocab_size=tokenizer.vocab_size,
            width=dino.TEXT_WIDTH,
            heads=dino.TEXT_HEADS,
            layers=dino.TEXT_DEPTH,
            output_dim=2 * width,
        )
        block: Any = vision.blocks[0]
        head = build_image_head(width, block.attn.num_heads)
        return DinoTxtEncoder(vision, head, text, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, dino.PATCHES)

    @classmethod
    def check_encoder(cls, cfg: CfgNode) -> None:
        check_vision_model(_KEY, cfg.MODEL.DINO_TXT.NAME)
