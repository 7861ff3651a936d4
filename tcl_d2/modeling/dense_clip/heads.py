"""Dense heads: what CLIP's last block does, so that its features say what is at each patch; and their registry."""

import torch
from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.ranges import check_values
from ..encoders.clip import FrozenCLIP, finish_block, project_heads, value_path
from ..encoders.linear import run_layers
from ..encoders.positions import PositionRule

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
Builders of dense heads by name, the values of MODEL.DENSE_CLIP.HEAD and MODEL.TCL.KP_HEAD: a function of the
configuration that returns a DenseHead.
"""


class DenseHead(nn.Module):
    """A rule for CLIP's last block, or its last ones.

    A subclass gives `attend`, or `forward`. All other blocks are CLIP's own. A head with weights of its own may be
    trained: it gives `compute_losses` and `parameter_groups`.

    Attributes:
        num_blocks: how many blocks the rule is for; `forward` is given the tokens before them.
        position: how the position embeddings are resized: by default, the rule of SCLIP's release and its successors.
        keeps_grid: whether features are of CLIP's own patches, as key smoothing needs them.
        keeps_block: whether residual and MLP are computed; otherwise the attention's output is the block's.
        pad_to: crops are padded with zeros to multiples of so many pixels; None: to whole patches; 1: not at all, so
            that a rest at the right and at the bottom is not seen.
        squeezes_padding: see CropSegmentor.
        finds_objects: whether `forward` takes `with_objects`, and then returns beside the features a logit of each
            patch, [B, 1, h, w], above 0 for objects.
    """

    num_blocks = 1
    position = PositionRule(offset=0.1, keeps_equal_count=True)
    keeps_grid = True
    keeps_block = False
    pad_to: int | None = 1
    squeezes_padding = False
    finds_objects = False

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """Gather values: queries, keys and values [B, heads, 1 + h*w, d] -> [B, heads, 1 + h*w, d].

        The class token comes first, then the patches of the `grid` (h, w), row by row.
        """
        raise NotImplementedError

    def forward(self, clip: FrozenCLIP, tokens: Tensor, images: Tensor) -> Tensor:
        """Compute features [B, D, h, w], not normalized; a head may give them on a grid of its own.

        Args:
            tokens: before CLIP's last `num_blocks` blocks, [B, 1 + h*w, C].
            images: normalized, [B, 3, H, W].
        """
        block, grid = clip.blocks[-1], clip.grid(images)
        attended = self.attend(*project_heads(block, tokens), grid).transpose(1, 2).flatten(2)
        if self.keeps_block:
            return clip.project(finish_block(block, tokens, attended), grid)
        return clip.project(run_layers(block.attn.out_proj, attended), grid)

    def compute_losses(self, clip: FrozenCLIP, images: Tensor, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Compute the losses by name, from normalized images [B, 3, H, W] and the batch that they are of."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to train")

    def parameter_groups(self, cfg: CfgNode) -> list[dict]:
        """Return what is trained, in the groups of torch's optimizers; [] for nothing."""
        return []

    def continue_features(self, clip: FrozenCLIP, tokens: Tensor, depth: int, images: Tensor) -> Tensor:
        """Compute features as `forward`, from tokens after the first `depth` blocks, all of them before its own."""
        tokens = clip.run_blocks(tokens, depth, len(clip.blocks) - self.num_blocks)
        return self(clip, tokens, images)


def build_dense_head(name: str, cfg: CfgNode) -> DenseHead:
    """Build a head by its name in DENSE_HEAD_REGISTRY; ValueError lists the names."""
    check_dense_head("MODEL.DENSE_CLIP.HEAD or MODEL.TCL.KP_HEAD", name)
    return DENSE_HEAD_REGISTRY.get(name)(cfg)


def check_dense_head(key: str, name: str) -> None:
    """Check that a head of this name is registered; ValueError names the configuration's `key` and lists the heads."""
    if name not in DENSE_HEAD_REGISTRY:
        names = ", ".join(sorted(name for name, _ in DENSE_HEAD_REGISTRY))
        raise ValueError(f"{key} is '{name}', but there is no such dense head; expected one of {names}.")


class CLIPHead(DenseHead):
    """CLIP's own: attention softmax(q k' / sqrt(d)), residual and MLP (Radford et al., ICML 2021)."""

    keeps_block = True

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class MaskCLIPHead(DenseHead):
    """Each token attends to itself alone: its value takes the attention's place; residual and MLP stay, as released.

    Zhou, Loy & Dai, Extract Free Dense Labels from CLIP, ECCV 2022, arXiv 2112.01071.
    """

    position = PositionRule(keeps_equal_count=True)
    pad_to = None

    def forward(self, clip: FrozenCLIP, tokens: Tensor, images: Tensor) -> Tensor:
        return clip.project(value_path(clip.blocks[-1], tokens), clip.grid(images))


class SCLIPHead(DenseHead):
    """Attention softmax(q q' / sqrt(d)) + softmax(k k' / sqrt(d)), a sum and no mean; residual and MLP stay.

    Wang, Mei & Yuille, Rethinking Self-Attention for Dense Vision-Language Inference, ECCV 2024, arXiv 2312.01597.
    """

    keeps_block = True

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        by_query = F.scaled_dot_product_attention(query, query, value)
        return by_query + F.scaled_dot_product_attention(key, key, value)


class ClearCLIPHead(DenseHead):
    """Attention softmax(q q' / sqrt(d)), without residual and MLP.

    Lan et al., Decomposing CLIP Representations for Dense Vision-Language Inference, ECCV 2024, arXiv 2407.12442.
    """

    pad_to = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.scaled_dot_product_attention(query, query, value)


class NACLIPHead(DenseHead):
    """Attention softmax(k k' / sqrt(d) + omega), without residual and MLP.

    omega of two patches at a distance of r patches is exp(-r^2 / (2 sigma^2)); it is 0 to and from the class token.
    Hajimiri, Ben Ayed & Dolz, Pay Attention to Your Neighbours, WACV 2025, arXiv 2404.08181.
    """

    def __init__(self, sigma: float = 5.0):
        """Set the size of the neighborhood, in patches."""
        super().__init__()
        check_values("MODEL.DENSE_CLIP", SIGMA=sigma)
        self.sigma = sigma

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        omega = self.neighborhood(grid, key.device).to(key.dtype)
        return F.scaled_dot_product_attention(key, key, value, attn_mask=omega)

    def neighborhood(self, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
        """Compute omega, fp32 [1 + h*w, 1 + h*w], class token first."""
        rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
        by_row, by_column = (torch.exp(-((x[:, None] - x) ** 2) / (2 * self.sigma**2)) for x in (rows, columns))

        # Their Kronecker product; torch.kron cannot be exported for any size
        by_both = by_row[:, None, :, None] * by_column[None, :, None, :]
        return F.pad(by_both.flatten(2).flatten(0, 1), (1, 0, 1, 0))


@DENSE_HEAD_REGISTRY.register()
def clip(cfg: CfgNode) -> CLIPHead:
    return CLIPHead()


@DENSE_HEAD_REGISTRY.register()
def maskclip(cfg: CfgNode) -> MaskCLIPHead:
    return MaskCLIPHead()


@DENSE_HEAD_REGISTRY.register()
def sclip(cfg: CfgNode) -> SCLIPHead:
    return SCLIPHead()


@DENSE_HEAD_REGISTRY.register()
def clearclip(cfg: CfgNode) -> ClearCLIPHead:
    return ClearCLIPHead()


@DENSE_HEAD_REGISTRY.register()
def naclip(cfg: CfgNode) -> NACLIPHead:
    return NACLIPHead(cfg.MODEL.DENSE_CLIP.SIGMA)
