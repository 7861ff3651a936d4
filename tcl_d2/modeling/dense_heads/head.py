"""DenseHead: what CLIP's last block does, so that its features say what is at each patch; and the registry of heads."""

from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..clip import FrozenCLIP, PositionRule, finish_block, project_heads, run_block
from ..linear import run_layers

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
Builders of dense heads by name, the values of MODEL.DENSE_CLIP.HEAD and MODEL.TCL.KP_HEAD: a function of the
configuration that returns a DenseHead.
"""


class DenseHead(nn.Module):
    """A rule for CLIP's last block. Nothing in it is trained.

    A subclass gives `attend`. All blocks but the last are CLIP's own.

    Attributes:
        position: how the position embeddings are resized. This is the rule of SCLIP's release and its successors.
        keeps_grid: whether features are of CLIP's own patches, as key smoothing needs them.
        keeps_block: whether residual and MLP are computed; otherwise the attention's output is the block's.
        pad_to: crops are padded with zeros to multiples of so many pixels; None: to whole patches; 1: not at all, so
            that a rest at the right and at the bottom is not seen.
    """

    position = PositionRule(offset=0.1, keeps_equal_count=True)
    keeps_grid = True
    keeps_block = False
    pad_to: int | None = 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """Gather values.

        Args:
            query: [B, heads, 1 + h*w, d], class token first, then the patches row by row.
            key: as `query`.
            value: as `query`.
            grid: (h, w).

        Returns:
            [B, heads, 1 + h*w, d].
        """
        raise NotImplementedError

    def forward(self, clip: FrozenCLIP, tokens: Tensor, images: Tensor) -> Tensor:
        """Compute features, not normalized.

        Args:
            clip: the frozen CLIP.
            tokens: before its last block, [B, 1 + h*w, C].
            images: normalized, [B, 3, H, W].

        Returns:
            features [B, D, h, w]; a head may give them on a grid of its own.
        """
        block, grid = clip.blocks[-1], clip.grid(images)
        attended = self.attend(*project_heads(block, tokens), grid).transpose(1, 2).flatten(2)
        tokens = (
            finish_block(block, tokens, attended) if self.keeps_block else run_layers(block.attn.out_proj, attended)
        )
        return clip.project(tokens, grid)

    def continue_features(self, clip: FrozenCLIP, tokens: Tensor, depth: int, images: Tensor) -> Tensor:
        """Compute features as `forward`, from tokens after the first `depth` blocks."""
        for block in clip.blocks[depth:-1]:
            tokens = run_block(block, tokens)
        return self(clip, tokens, images)


def build_dense_head(name: str, cfg: CfgNode) -> DenseHead:
    """Build a head by its name in DENSE_HEAD_REGISTRY; ValueError lists the names."""
    check_dense_head("MODEL.DENSE_CLIP.HEAD or MODEL.TCL.KP_HEAD", name)
    return DENSE_HEAD_REGISTRY.get(name)(cfg)


def check_dense_head(key: str, name: str) -> None:
    """Check that there is a head of a name; ValueError names the configuration's `key`, and lists the heads."""
    if name not in DENSE_HEAD_REGISTRY:
        names = ", ".join(sorted(name for name, _ in DENSE_HEAD_REGISTRY))
        raise ValueError(f"{key} is '{name}', but there is no such dense head; expected one of {names}.")
