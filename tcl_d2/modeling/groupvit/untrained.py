"""A GroupViT of any sizes with random weights, to be trained."""

from collections.abc import Sequence

from torch import nn

from .loading import HEAD_WIDTH, import_transformers

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

    Args:
        image_size: side of the images that positions are learned for, in pixels.
        patch_size: side of a patch, in pixels.
        width: of the image encoder.
        depths: blocks of each stage.
        groups: group tokens of each stage but the last, and as many groups that it makes.
        num_heads: of the image encoder's attention.
        text_width: of the text encoder; a head has 64 of it.
        text_depth: blocks of the text encoder.
        projection_width: hidden width of the projections into the common space.
        embed_dim: size of the common space.
        vocab_size: number of text tokens.
        context_length: longest text, in tokens.

    Raises:
        ValueError: sizes that make no model; names the config key.
        RuntimeError: no or an old transformers.
    """
    _check_sizes(image_size, patch_size, width, num_heads, text_width)
    _check_stages(depths, groups)
    transformers = import_transformers()

    config = transformers.GroupViTConfig(
        vision_config={
            "image_size": image_size,
            "patch_size": patch_size,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "depths": list(depths),
            "num_hidden_layers": sum(depths),
            "num_group_tokens": [*groups, 0],
            "num_output_groups": [*groups, 0],
            "num_attention_heads": num_heads,
        },
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": text_depth,
            "num_attention_heads": text_width // HEAD_WIDTH,
            "max_position_embeddings": context_length,
            "bos_token_id": None,
            "eos_token_id": 2,  # transformers' sign for the token with the largest number, which ends a text
        },
        projection_dim=embed_dim,
        projection_intermediate_dim=projection_width,
    )

    model = transformers.GroupViTModel(config)
    _draw_tokens(model.vision_model)
    return model


def _check_sizes(image_size: int, patch_size: int, width: int, num_heads: int, text_width: int) -> None:
    """Raise a ValueError that names the config key of the first size that makes no model."""
    if patch_size < 1 or image_size < patch_size or image_size % patch_size:
        raise ValueError(
            f"MODEL.GROUPVIT.IMAGE_SIZE is {image_size}; expected a multiple of PATCH_SIZE, which is {patch_size}."
        )
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"MODEL.GROUPVIT.WIDTH is {width}; expected a multiple of NUM_HEADS, which is {num_heads}.")
    if text_width < 1 or text_width % HEAD_WIDTH:
        raise ValueError(f"MODEL.GROUPVIT.TEXT_WIDTH is {text_width}; expected a multiple of {HEAD_WIDTH}.")


def _check_stages(depths: Sequence[int], groups: Sequence[int]) -> None:
    if not groups or min(groups) < 1:
        raise ValueError(f"MODEL.GROUPVIT.GROUPS is {list(groups)}; expected the number of groups of each stage.")
    if len(depths) != len(groups) + 1 or min(depths) < 1:
        raise ValueError(
            f"MODEL.GROUPVIT.DEPTHS is {list(depths)}; expected the number of blocks of {len(groups) + 1} stages, one "
            f"more than GROUPS {list(groups)}."
        )


def _draw_tokens(vision: nn.Module) -> None:
    """Draw positions and the group tokens of the first stage, as a ViT's tokens are; the rest is transformers' choice.

    transformers leaves them all at 0, where the tokens of a stage are the same. Those of later stages stay 0: the
    tokens of the stage before, which are mixed, are added to them.
    """
    for tokens in (vision.embeddings.position_embeddings, vision.encoder.stages[0].group_token):
        nn.init.trunc_normal_(tokens, std=_STD, a=-2 * _STD, b=2 * _STD)
