"""A GroupViT of the configuration's sizes with random weights."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...config.ranges import check_values
from ...utils.errors import expect
from .loading import import_transformers

_HEAD_WIDTH = 64  # of the text encoder, as CLIP's
_STD = 0.02  # of the normal distribution, cut at two deviations, from which a ViT's tokens are drawn


def build_untrained_groupvit(
    *,
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 384,
    depths: Sequence[int] = (6, 3, 3),
    groups: Sequence[int] = (64, 8),
    num_heads: int = 6,
    text_width: int = 256,
    text_depth: int = 12,
    projection_width: int = 4096,
    embed_dim: int = 256,
    vocab_size: int = 49408,
    context_length: int = 77,
) -> nn.Module:
    """Build transformers' GroupViTModel with random weights; the defaults are the released sizes.

    All but the last two are keys of MODEL.GROUPVIT. A ValueError names the key of a size that makes no model.
    """
    _check_sizes(image_size, patch_size, width, num_heads, text_width)
    _check_stages(depths, groups)
    transformers = import_transformers()
    config = transformers.GroupViTConfig(
        vision_config=_vision_config(image_size, patch_size, width, depths, groups, num_heads),
        text_config=_text_config(text_width, text_depth, vocab_size, context_length),
        projection_dim=embed_dim,
        projection_intermediate_dim=projection_width,
    )
    model = transformers.GroupViTModel(config)
    _draw_tokens(model.vision_model)
    return model


def _check_sizes(image_size: int, patch_size: int, width: int, num_heads: int, text_width: int) -> None:
    section = "MODEL.GROUPVIT"
    check_values(section, IMAGE_SIZE=image_size, PATCH_SIZE=patch_size, WIDTH=width, NUM_HEADS=num_heads)
    for name, value, divisor in (
        ("IMAGE_SIZE", image_size, patch_size),
        ("WIDTH", width, num_heads),
        ("TEXT_WIDTH", text_width, _HEAD_WIDTH),
    ):
        expect(value >= 1 and value % divisor == 0, f"{section}.{name}", value, f"a multiple of {divisor}")


def _check_stages(depths: Sequence[int], groups: Sequence[int]) -> None:
    check_values("MODEL.GROUPVIT", DEPTHS=depths, GROUPS=groups)
    expected = f"the blocks of {len(groups) + 1} stages, one more than GROUPS {list(groups)}"
    expect(len(depths) == len(groups) + 1, "MODEL.GROUPVIT.DEPTHS", list(depths), expected)


def _vision_config(
    image_size: int, patch_size: int, width: int, depths: Sequence[int], groups: Sequence[int], num_heads: int
) -> dict[str, Any]:
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "depths": list(depths),
        "num_hidden_layers": sum(depths),
        "num_group_tokens": [*groups, 0],
        "num_output_groups": [*groups, 0],
        "num_attention_heads": num_heads,
    }


def _text_config(width: int, depth: int, vocab_size: int, context_length: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // _HEAD_WIDTH,
        "max_position_embeddings": context_length,
        "bos_token_id": None,
        "eos_token_id": 2,  # for transformers, the token with the largest number, which ends a text
    }


def _draw_tokens(vision: Any) -> None:
    """Draw positions and the group tokens of the first stage as a ViT's tokens are; the rest is transformers' choice.

    transformers leaves them all at 0, where the tokens of a stage are the same. Those of later stages stay 0: the
    tokens of the stage before, which are mixed, are added to them.
    """
    for tokens in (vision.embeddings.position_embeddings, vision.encoder.stages[0].group_token):
        nn.init.trunc_normal_(tokens, std=_STD, a=-2 * _STD, b=2 * _STD)
