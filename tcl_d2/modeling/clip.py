"""The frozen CLIP, on open_clip: text and image features, and the blocks that the grounder shares."""

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def _check_tower(visual: nn.Module) -> None:
    plain = (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
    )
    if not plain:
        raise ValueError(
            f"The image tower of this CLIP is {type(visual).__name__}; TCL needs open_clip's own VisionTransformer, "
            "with a class token and standard attention blocks (ViT-B-32, ViT-B-16, ViT-L-14, ...), no ResNet, timm or "
            "attention-pooled tower."
        )


def run_block(block: ResidualAttentionBlock, x: Tensor, count: int | None = None) -> Tensor:
    """Compute block(x), faster: nn.MultiheadAttention works sequence first, and makes many small products of a batch.

    Args:
        block: a block of CLIP's image encoder.
        x: tokens [B, L, C].
        count: tokens whose results are needed, the first ones; None for all.

    Returns:
        tokens [B, count, C].
    """
    attention, width = block.attn, x.shape[-1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias

    # Project: queries of the wanted tokens, keys and values of all
    normed = block.ln_1(x)
    query = F.linear(normed[:, :count], weight[:width], bias[:width])
    key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)

    # Attend, head by head
    heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return _finish_block(block, x[:, :count], attended)


def value_path(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Compute a block under MaskCLIP's rule: each token attends to itself alone: attention is out_proj(v_proj(.)).

    Args:
        block: a block of CLIP's image encoder.
        x: tokens [B, L, C].

    Returns:
        tokens [B, L, C].
    """
    attention, width = block.attn, x.shape[-1]
    value = F.linear(block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    return _finish_block(block, x, value)


def _finish_block(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Drop the class token and fold tokens [B, 1 + h*w, C] to a map [B, C, h, w] (channels last in memory)."""
    return tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)


class FrozenCLIP(nn.Module):
    """CLIP's two encoders, frozen and always in eval mode. Gradient may flow through them, never into them.

    Images are float [B, 3, H, W], normalized, H and W multiples of `patch_size`.
    """

    def __init__(self, model: nn.Module):
        """Freeze a CLIP.

        Args:
            model: an open_clip model whose image tower is open_clip's VisionTransformer; ValueError otherwise.
        """
        super().__init__()
        _check_tower(model.visual)
        self.model = model.requires_grad_(False).eval()
        self.model.logit_scale = None  # of CLIP's own contrast; TCL's losses have theirs

    def train(self, mode: bool = True) -> "FrozenCLIP":
        return super().train(False)

    @property
    def visual(self) -> VisionTransformer:
        return self.model.visual

    @property
    def patch_size(self) -> int:
        return self.visual.patch_size[0]

    @property
    def embed_dim(self) -> int:
        return self.visual.output_dim

    @property
    def blocks(self) -> nn.ModuleList:
        return self.visual.transformer.resblocks

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the tokens of images [B, 3, H, W]."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens int [N, context] -> text features [N, D], not normalized."""
        return self.model.encode_text(tokens)

    def encode_image(self, images: Tensor, recompute: bool = False) -> Tensor:
        """Encode images -> features [B, D], not normalized: the class token after all blocks, ln_post, projection."""
        visual = self.visual
        tokens = self.forward_blocks(images, len(self.blocks) - 1, recompute)
        class_token = run_block(self.blocks[-1], tokens, count=1)[:, 0]
        return visual.ln_post(class_token) @ visual.proj

    def forward_blocks(self, images: Tensor, depth: int, recompute: bool = False) -> Tensor:
        """Run the first `depth` blocks: images -> tokens [B, 1 + h*w, C], class token first.

        Args:
            images: normalized images [B, 3, H, W].
            depth: number of blocks.
            recompute: whether a block's activations are computed again for the gradient rather than held.
        """
        visual = self.visual

        # Embed patches, add the class token and positions
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1) + self._position(self.grid(images)).to(x.dtype)
        x = visual.ln_pre(x)

        # Run the blocks
        for block in self.blocks[:depth]:
            x = checkpoint(run_block, block, x, use_reentrant=False) if recompute else run_block(block, x)
        return x

    def dense_features(self, tokens: Tensor, depth: int, grid: tuple[int, int]) -> Tensor:
        """Compute MaskCLIP's dense features [B, D, h, w], not normalized, from the tokens after `depth` blocks.

        The last block follows the MaskCLIP rule; ln_post and projection are applied to every token.
        """
        for block in self.blocks[depth:-1]:
            tokens = run_block(block, tokens)
        tokens = value_path(self.blocks[-1], tokens)
        return tokens_to_map(self.visual.ln_post(tokens) @ self.visual.proj, grid)

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """Resize the position embeddings to a grid (bicubic, no antialias; the class token's stays) -> [1 + h*w, C]."""
        position = self.visual.positional_embedding
        if grid == tuple(self.visual.grid_size):
            return position
        patches = position[1:].unflatten(0, self.visual.grid_size).permute(2, 0, 1)[None]
        patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([position[:1], patches[0].permute(1, 2, 0).flatten(0, 1)])
