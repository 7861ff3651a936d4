"""From the names of the official GroupViT release to transformers'."""

import re
from collections.abc import Mapping

from torch import Tensor

from ..encoders.renaming import rename_weights

_NAMES = (
    ("logit_scale", "logit_scale"),
    # Image encoder
    ("img_encoder.pos_embed", "vision_model.embeddings.position_embeddings"),
    ("img_encoder.patch_embed.proj.*", "vision_model.embeddings.patch_embeddings.projection.*"),
    ("img_encoder.patch_embed.norm.*", "vision_model.embeddings.layernorm.*"),
    ("img_encoder.layers.#.blocks.#.norm1.*", "vision_model.encoder.stages.#.layers.#.layer_norm1.*"),
    ("img_encoder.layers.#.blocks.#.norm2.*", "vision_model.encoder.stages.#.layers.#.layer_norm2.*"),
    ("img_encoder.layers.#.blocks.#.attn.qkv.*", "vision_model.encoder.stages.#.layers.#.self_attn.?_proj.*"),
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
    ("text_encoder.transformer.resblocks.#.attn.in_proj_*", "text_model.encoder.layers.#.self_attn.?_proj.*"),
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
_CONVOLUTION = re.compile(r"\w+_projector\.linear_(hidden\.0|out)\.weight")  # [out, in, 1] there, [out, in] here
_TRAINING_ONLY = "multi_label_logit_scale"  # of the model trained on YFCC


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the official release's state dict for transformers, without what only training needs.

    Other names stay as they are.
    """
    kept = {key: value for key, value in state.items() if key != _TRAINING_ONLY}
    for key, value in kept.items():
        if _CONVOLUTION.fullmatch(key) and value.ndim == 3:
            kept[key] = value.squeeze(2)
    return rename_weights(kept, _NAMES)
