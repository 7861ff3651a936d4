"""State dicts with the names of the official GroupViT release, and with transformers'."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# Official and transformers' names: # is a number, * the rest. The first pair that fits counts.
_NAMES = (
    ("logit_scale", "logit_scale"),
    # Image encoder
    ("img_encoder.pos_embed", "vision_model.embeddings.position_embeddings"),
    ("img_encoder.patch_embed.proj.*", "vision_model.embeddings.patch_embeddings.projection.*"),
    ("img_encoder.patch_embed.norm.*", "vision_model.embeddings.layernorm.*"),
    ("img_encoder.layers.#.blocks.#.norm1.*", "vision_model.encoder.stages.#.layers.#.layer_norm1.*"),
    ("img_encoder.layers.#.blocks.#.norm2.*", "vision_model.encoder.stages.#.layers.#.layer_norm2.*"),
    ("img_encoder.layers.#.blocks.#.attn.proj.*", "vision_model.encoder.stages.#.layers.#.self_attn.out_proj.*"),
    ("img_encoder.layers.#.blocks.#.mlp.*", "vision_model.encoder.stages.#.layers.#.mlp.*"),
    (
        "img_encoder.layers.#.downsample.pre_assign_attn.attn.proj.*",
        "vision_model.encoder.stages.#.downsample.pre_assign_attn.attn.out_proj.*",
    ),
    ("img_encoder.layers.#.*", "vision_model.encoder.stages.#.*"),  # groups, and how tokens are assigned to them
    ("img_encoder.norm.*", "vision_model.layernorm.*"),
    # Text encoder
    ("text_encoder.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("text_encoder.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("text_encoder.transformer.resblocks.#.attn.out_proj.*", "text_model.encoder.layers.#.self_attn.out_proj.*"),
    ("text_encoder.transformer.resblocks.#.ln_1.*", "text_model.encoder.layers.#.layer_norm1.*"),
    ("text_encoder.transformer.resblocks.#.ln_2.*", "text_model.encoder.layers.#.layer_norm2.*"),
    ("text_encoder.transformer.resblocks.#.mlp.c_fc.*", "text_model.encoder.layers.#.mlp.fc1.*"),
    ("text_encoder.transformer.resblocks.#.mlp.c_proj.*", "text_model.encoder.layers.#.mlp.fc2.*"),
    ("text_encoder.ln_final.*", "text_model.final_layer_norm.*"),
    # Projections
    ("img_projector.linear_out.*", "visual_projection.3.*"),
    ("img_projector.linear_hidden.#.*", "visual_projection.#.*"),
    ("text_projector.linear_out.*", "text_projection.3.*"),
    ("text_projector.linear_hidden.#.*", "text_projection.#.*"),
)
# Queries, keys and values, in this order, are one weight there and three here
_JOINED_NAMES = (
    ("img_encoder.layers.#.blocks.#.attn.qkv.*", "vision_model.encoder.stages.#.layers.#.self_attn.?_proj.*"),
    ("text_encoder.transformer.resblocks.#.attn.in_proj_*", "text_model.encoder.layers.#.self_attn.?_proj.*"),
)
_CONVOLUTION = re.compile(r"\w+_projector\.linear_(hidden\.0|out)\.weight")  # [out, in, 1] there, [out, in] here
_TRAINING_ONLY = "multi_label_logit_scale"  # of the model trained on YFCC


def is_official(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict is a GroupViT's with the official release's names."""
    return "img_encoder.layers.0.group_token" in state


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the official release's state dict with transformers' names, without what only training needs.

    A name that the release does not have stays as it is.
    """
    renamed = {}
    for key, value in state.items():
        if key == _TRAINING_ONLY:
            continue
        if joined := _rename(key, _JOINED_NAMES):
            renamed |= {joined.replace("?", part): chunk for part, chunk in zip("qkv", value.chunk(3))}
            continue
        if _CONVOLUTION.fullmatch(key) and value.ndim == 3:
            value = value.squeeze(2)
        renamed[_rename(key, _NAMES) or key] = value
    return renamed


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' state dict with the official release's names."""
    names = [(ours, official) for official, ours in _NAMES]
    joined_names = [(ours.replace("?", "[qkv]"), official) for official, ours in _JOINED_NAMES]

    renamed = {}
    for key, value in state.items():
        if joined := _rename(key, joined_names):
            renamed.setdefault(joined, {})[re.search(r"\.([qkv])_proj\.", key)[1]] = value
            continue
        key = _rename(key, names) or key
        renamed[key] = value.unsqueeze(2) if _CONVOLUTION.fullmatch(key) else value
    return {
        key: torch.cat([value[part] for part in "qkv"]) if isinstance(value, dict) else value
        for key, value in renamed.items()
    }


def _rename(key: str, names: Iterable[tuple[str, str]]) -> str | None:
    """Return a key's new name by pairs (old, new) with # and *; None where no pair fits."""
    for old, new in names:
        pattern = old.replace(".", r"\.").replace("#", r"(\d+)").replace("*", "(.+)")
        if match := re.fullmatch(pattern, key):
            parts = iter(match.groups())
            return re.sub("[#*]", lambda _, parts=parts: next(parts), new)
    return None
