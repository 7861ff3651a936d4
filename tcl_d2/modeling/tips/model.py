"""TIPSv2 (CVPR 2026) as a segmentor: its configuration and its files."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ...utils.downloads import local_weights
from ...utils.errors import expect
from ..encoders.vision import check_vision_model
from ..encoders.weights import read_weights
from .base import PatchTextSegmentor
from .encoder import TIPSEncoder, build_image_tower
from .text import TIPSTokenizer, build_text_tower, find_tokenizer, import_transformers, load_text_tower


@META_ARCH_REGISTRY.register()
class TIPSv2(PatchTextSegmentor):
    """Segments by the cosines of a text and the values of the last block, by its release's rule."""

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
        block: Any = vision.blocks[0]
        heads = tips.TEXT_HEADS or block.attn.num_heads
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
