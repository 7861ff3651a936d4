"""PAMR: pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020), as a sparse matrix product."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# What is used of it is tested against a plain loop.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)


def _neighbours(height: int, width: int, dilations: Sequence[int], device: torch.device) -> Tensor:
    """Indices [48, H*W] (8 a dilation) of every pixel's neighbours in the flat image; the border is replicated."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    offsets = torch.tensor([(d * y, d * x) for d in dilations for y, x in steps], device=device)
    rows = torch.arange(height, device=device)[None, :, None] + offsets[:, 0, None, None]
    columns = torch.arange(width, device=device)[None, None, :] + offsets[:, 1, None, None]
    return (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)


class PAMR(nn.Module):
    """Averages each mask, again and again, over neighbours that look alike in the image.

    The affinities of an image are the same for all its masks: a sparse [H*W, H*W] matrix with 8 entries a dilation in
    each row, built once and multiplied with the masks `iterations` times.
    """

    def __init__(self, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)):
        super().__init__()
        if not dilations or min(dilations) < 1 or iterations < 1:
            raise ValueError(f"PAMR needs dilations and iterations of at least 1, not {dilations} and {iterations}.")
        self.iterations = iterations
        self.dilations = tuple(dilations)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """
        Args:
            images: float [B, 3, H', W'], of any size: resized to the masks' (bilinear, align_corners=True).
            masks: float [B, K, H, W].

        Returns:
            the refined masks, fp32 [B, K, H, W].
        """
        height, width = masks.shape[-2:]
        with torch.autocast(masks.device.type, enabled=False):
            images = F.interpolate(images.float(), size=(height, width), mode="bilinear", align_corners=True)
            neighbours = _neighbours(height, width, self.dilations, masks.device)
            refined = [self._refine(*pair, neighbours) for pair in zip(images.flatten(2), masks.float().flatten(2))]
        return torch.stack(refined).unflatten(2, (height, width))

    def _refine(self, image: Tensor, masks: Tensor, neighbours: Tensor) -> Tensor:
        """One image [3, H*W] and its masks [K, H*W] -> masks [K, H*W]."""
        count, pixels = neighbours.shape
        matrix = torch.sparse_csr_tensor(
            torch.arange(0, count * pixels + 1, count, device=image.device),
            neighbours.T.flatten(),
            self._affinity(image, neighbours).T.flatten(),
            size=(pixels, pixels),
            check_invariants=False,  # a replicated border names the same neighbour twice: the product adds them up
        )
        columns = masks.T.contiguous()
        for _ in range(self.iterations):
            columns = matrix @ columns
        return columns.T

    def _affinity(self, image: Tensor, neighbours: Tensor) -> Tensor:
        """Weights [48, H*W], which add up to 1 over the neighbours of a pixel."""
        around = image[:, neighbours]  # [3, 48, H*W]
        centre = image[:, None]
        # As officially: each dilation's 3 x 3 window counts its centre, so that 9 values a dilation are spread.
        values = torch.cat([around, centre.expand(-1, len(self.dilations), -1)], dim=1)
        spread = values.std(dim=1, keepdim=True)
        return (-(centre - around).abs() / (1e-8 + 0.1 * spread)).mean(0).softmax(0)
