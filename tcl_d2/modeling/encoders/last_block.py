"""The last block of timm's VisionTransformer and Eva, for methods that look into it."""

from typing import Any, NamedTuple

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor
from torch.nn import functional as F


class LastBlock(NamedTuple):
    """The last block of a vision model, and what it is given for some images.

    Attributes:
        model: a VisionTransformer or Eva.
        tokens: before the block, the p prefix tokens first, [B, p + h*w, C].
        rope: sines, then cosines of the patches' places, [h*w, 2 d]; None for a model without RoPE.
    """

    model: Any
    tokens: Tensor
    rope: Tensor | None

    def finish(self, each_alone: bool = False) -> Tensor:
        """Compute all tokens after the block and the final norm, [B, p + h*w, C].

        Args:
            each_alone: each token attends to itself alone: its value takes the attention's place (MaskCLIP's rule).
        """
        options = {} if self.rope is None else {"rope": self.rope}
        if each_alone:
            count = self.tokens.shape[1]
            others = ~torch.eye(count, dtype=torch.bool, device=self.tokens.device)
            options["attn_mask"] = torch.zeros_like(others, dtype=self.tokens.dtype).masked_fill(others, -torch.inf)
        tokens = self.model.blocks[-1](self.tokens, **options)
        return self.model.forward_head(self.model.norm(tokens))

    def project_heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values of the block's attention, before RoPE, each [B, heads, p + h*w, d]."""
        block = self.model.blocks[-1]
        attention, bias = block.attn, block.attn.qkv.bias
        if getattr(attention, "q_bias", None) is not None:  # an Eva's; its keys have none
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        heads = F.linear(block.norm1(self.tokens), attention.qkv.weight, bias)
        query, key, value = heads.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return attention.q_norm(query), attention.k_norm(key), value

    def rotate(self, heads: Tensor) -> Tensor:
        """Turn queries or keys [B, heads, p + h*w, d] by the patches' places, where the model has RoPE."""
        if self.rope is None:
            return heads
        attention = self.model.blocks[-1].attn
        prefix, patches = heads.split([heads.shape[2] - len(self.rope), len(self.rope)], dim=2)
        return torch.cat([prefix, apply_rot_embed_cat(patches, self.rope, half=attention.rotate_half)], 2)
