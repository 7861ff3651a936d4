"""The frozen CLIP, on open_clip: text and image features, and the blocks that the grounder shares."""

from contextlib import nullcontext
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...utils.tensors import weights_by_name
from ...utils.upstream import without_parameter
from ..functional import tokens_to_map
from .base import FrozenDualEncoder
from .linear import linear, run_layers
from .positions import RESIZED_TO_GRID, KeptPositions, PositionRule
from .shared_results import SharedResults

# The parameters of a block, whatever its class, that computes x + attn(ln_1(x)) and then x + mlp(ln_2(x))
_LAYERS = ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
_BLOCK = {f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")}
_BLOCK |= {"attn.in_proj_weight", "attn.in_proj_bias"}
_LAYER_SCALES = {"ls_1.gamma", "ls_2.gamma"}  # which a block may have
Block = Any  # such a module, whose layers nn.Module does not declare


def _is_plain(visual: Any) -> bool:
    """Tell whether an image tower is a vision transformer with a class token, of blocks that run_block can run."""
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    weights = [{name for name, _ in block.named_parameters()} - _LAYER_SCALES for block in blocks]
    has_plain_blocks = bool(weights) and all(names == _BLOCK for names in weights)
    return has_plain_blocks and visual.attn_pool is None and visual.pool_type == "tok"


def _check_tower(visual: Any) -> None:
    if not _is_plain(visual):
        raise ValueError(
            f"The image tower of this CLIP is {type(visual).__name__}; TCL needs open_clip's own VisionTransformer, "
            "with a class token and standard attention blocks (ViT-B-32, ViT-B-16, ViT-L-14, ...), no ResNet, timm or "
            "attention-pooled tower."
        )


def project_heads(block: Block, x: Tensor, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries, keys and values of a block's attention: tokens [B, L, C] -> [B, heads, L, C / heads] each.

    Queries are of the first `count` tokens alone; None for all.
    """
    attention, width = block.attn, x.shape[-1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias

    normed = block.ln_1(x)
    query = linear(normed[:, :count], weight[:width], bias[:width])
    key, value = linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    heads = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    query, key, value = heads
    return query, key, value


def project_values(block: Block, x: Tensor) -> Tensor:
    """Compute the values of a block's attention alone, heads joined: tokens [B, L, C] -> [B, L, C]."""
    attention, width = block.attn, x.shape[-1]
    return linear(block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])


def project_smoothing_keys(block: Block, x: Tensor) -> Tensor:
    """Compute what MaskCLIP smooths by, the patches' keys under the output projection: [B, 1 + N, C] -> [B, N, C]."""
    attention, width = block.attn, x.shape[-1]
    keys = slice(width, 2 * width)
    normed = block.ln_1(x[:, 1:])
    return run_layers(attention.out_proj, linear(normed, attention.in_proj_weight[keys], attention.in_proj_bias[keys]))


def finish_block(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """Compute what follows the attention in a block: output projection, residual, MLP.

    Args:
        x: the block's input, tokens [B, L, C].
        attended: what the attention gathered, heads joined, [B, L, C].
    """
    return _finish_block(block, x, attended)[0]


def _finish_block(block: Block, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    x = x + block.ls_1(run_layers(block.attn.out_proj, attended))
    normed = block.ln_2(x)
    return x + block.ls_2(run_layers(block.mlp, normed)), normed


def run_block(block: Block, x: Tensor, count: int | None = None) -> Tensor:
    """Compute block(x) of tokens [B, L, C], or its first `count` tokens [B, count, C].

    This is faster: nn.MultiheadAttention works sequence first, and splits a batch into many small products.
    """
    attended = F.scaled_dot_product_attention(*project_heads(block, x, count))
    return finish_block(block, x[:, :count], attended.transpose(1, 2).flatten(2))


def run_block_with_norm(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute block(x) of tokens [B, L, C], and the output of the norm before its MLP, [B, L, C]."""
    attended = F.scaled_dot_product_attention(*project_heads(block, x))
    return _finish_block(block, x, attended.transpose(1, 2).flatten(2))


def value_path(block: Block, x: Tensor) -> Tensor:
    """Compute a block under MaskCLIP's rule, tokens [B, L, C]: each attends to itself alone, by out_proj(v_proj(.))."""
    return finish_block(block, x, project_values(block, x))


class FrozenCLIP(FrozenDualEncoder):
    """CLIP's two encoders. Images are float [B, 3, H, W], normalized, H and W multiples of `patch_size`.

    Attributes:
        results: what the models on it share of the same images and texts.
    """

    def __init__(self, model: Any):
        """Freeze an open_clip model whose image tower is a plain vision transformer; ValueError for others."""
        _check_tower(model.visual)
        # Without the scale of CLIP's own contrast, for TCL's losses have theirs. The caller's model keeps it
        model = copy(model)
        without_parameter(model, "logit_scale")
        super().__init__(model)
        self._positions = KeptPositions()
        self.results = SharedResults()
        self._depths: set[int] = set()  # numbers of blocks after which these models go on by themselves

    @property
    def visual(self) -> Any:
        return self.model.visual

    @property
    def patch_size(self) -> int:
        return self.visual.patch_size[0]

    @property
    def embed_dim(self) -> int:
        return self.visual.output_dim

    @property
    def blocks(self) -> Any:
        """The nn.ModuleList of its Blocks."""
        return self.visual.transformer.resblocks

    @property
    def activation(self) -> str:
        """Name of the activation in its blocks, such as "QuickGELU", which the weights do not show."""
        return type(self.blocks[0].mlp.gelu).__name__

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the tokens of images [B, 3, H, W]."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.results("text", self.model.encode_text, tokens)

    def text_weights(self) -> dict[str, Tensor]:
        weights = weights_by_name(self.model)
        return {name: weight for name, weight in weights.items() if not name.startswith("visual.")}

    def encode_image(self, images: Tensor, recompute: bool = False) -> Tensor:
        """Encode images -> features [B, D], not normalized: the class token after all blocks, ln_post, projection."""
        visual = self.visual
        tokens = self.forward_blocks(images, len(self.blocks) - 1, recompute)
        class_token = run_block(self.blocks[-1], tokens, count=1)[:, 0]
        return visual.ln_post(class_token) @ visual.proj

    def forward_blocks(
        self, images: Tensor, depth: int, recompute: bool = False, position: PositionRule = RESIZED_TO_GRID
    ) -> Tensor:
        """Run the first `depth` blocks: images -> tokens [B, 1 + h*w, C], class token first.

        `recompute` recomputes a block's activations for the gradient rather than holding them.
        """
        visual = self.visual

        # Embed patches, add the class token and positions
        x = self._embed_patches(images).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        positions = self._positions(position, visual.positional_embedding, tuple(visual.grid_size), self.grid(images))
        x = visual.ln_pre(torch.cat([class_token, x], dim=1) + positions.to(x.dtype))

        return self._share_blocks(x, depth) if self.results.are_kept else self.run_blocks(x, 0, depth, recompute)

    def _share_blocks(self, tokens: Tensor, depth: int) -> Tensor:
        self._depths.add(depth)
        first = 0
        for stop in sorted(stop for stop in self._depths if stop <= depth):
            tokens = self.results((first, stop), partial(self.run_blocks, first=first, stop=stop), tokens)
            first = stop
        return tokens

    def run_blocks(self, tokens: Tensor, first: int, stop: int, recompute: bool = False) -> Tensor:
        """Run the blocks `first` to `stop` - 1 on tokens [B, 1 + h*w, C]; `recompute` as in forward_blocks."""
        run = partial(checkpoint, run_block, use_reentrant=False) if recompute else run_block
        for block in self.blocks[first:stop]:
            tokens = run(block, tokens)
        return tokens

    def _embed_patches(self, images: Tensor) -> Tensor:
        """Embed the patches of images [B, 3, H, W] -> [B, C, h, w]."""
        # For a single column of patches, oneDNN's convolution in bfloat16 gives any numbers (torch 2.14, CPUs with AMX)
        device_type = images.device.type
        is_column = torch.is_autocast_enabled(device_type) and images.shape[-1] < 2 * self.patch_size
        autocast = torch.autocast(device_type, enabled=False) if is_column else nullcontext()
        with autocast:
            return self.visual.conv1(images)

    def project(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Turn tokens [B, 1 + h*w, C] after the last block into features [B, D, h, w]: ln_post and projection."""
        return tokens_to_map(self.visual.ln_post(tokens) @ self.visual.proj, grid)
