"""NACLIP's last block (Hajimiri, Ben Ayed & Dolz, Pay Attention to Your Neighbours, WACV 2025, arXiv 2404.08181)."""

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from .head import DENSE_HEAD_REGISTRY, DenseHead


class NACLIPHead(DenseHead):
    """Attention softmax(k k' / sqrt(d) + omega), without residual and MLP.

    omega of two patches at a distance of r patches is exp(-r^2 / (2 sigma^2)); it is 0 to and from the class token.
    """

    def __init__(self, sigma: float = 5.0):
        """Set the size of the neighborhood.

        Args:
            sigma: in patches, more than 0; ValueError for others.
        """
        super().__init__()
        if sigma <= 0:
            raise ValueError(f"MODEL.DENSE_CLIP.SIGMA must be more than 0 patches, not {sigma}.")
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
def naclip(cfg: CfgNode) -> NACLIPHead:
    return NACLIPHead(cfg.MODEL.DENSE_CLIP.SIGMA)
