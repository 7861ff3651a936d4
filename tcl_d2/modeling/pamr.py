"""PAMR: pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020), as a sparse matrix product."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PAMR(nn.Module):
    """Averages each mask, again and again, over neighbors that look alike in the image.

    The affinities of an image are the same for all its masks: a sparse [H*W, H*W] matrix with 8 entries a dilation in
    each row, built once and multiplied with the masks `iterations` times.
    """

    def __init__(self, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)):
        """Choose how often to average, and over which neighbors.

        Args:
            iterations: how often a mask is averaged, at least 1.
            dilations: distances of the 8 neighbors in pixels of the mask, each at least 1; ValueError for others.
        """
        super().__init__()
        if not dilations or min(dilations) < 1 or iterations < 1:
            raise ValueError(f"PAMR needs dilations and iterations of at least 1, not {dilations} and {iterations}.")

        self.iterations = iterations
        self.dilations = tuple(dilations)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Refine masks by the edges of their images.

        Args:
            images: float [B, 3, H', W'], of any size: resized to the masks' (bilinear, align_corners=True).
            masks: float [B, K, H, W].

        Returns:
            the refined masks, fp32 [B, K, H, W].
        """
        height, width = masks.shape[-2:]
        with torch.autocast(masks.device.type, enabled=False):
            images = F.interpolate(images.float(), size=(height, width), mode="bilinear", align_corners=True)
            neighbors = neighbor_indices(height, width, self.dilations, masks.device)
            refined = [
                self._refine_image(image, image_masks, neighbors)
                for image, image_masks in zip(images.flatten(2), masks.float().flatten(2))
            ]
        return torch.stack(refined).unflatten(2, (height, width))

    def _refine_image(self, image: Tensor, masks: Tensor, neighbors: Tensor) -> Tensor:
        """Refine the masks [K, H*W] of one image [3, H*W]; `neighbors` as of neighbor_indices."""
        affinity = _sparse_matrix(neighbors, self.affinity(image[None], neighbors)[0])
        columns = masks.T.contiguous()
        for _ in range(self.iterations):
            columns = affinity @ columns
        return columns.T

    def affinity(self, images: Tensor, neighbors: Tensor) -> Tensor:
        """Compute weights [B, 48, H*W] that add up to 1 over the neighbors of a pixel of images [B, 3, H*W]."""
        around = images[:, :, neighbors]  # [B, 3, 48, H*W]
        center = images[:, :, None]  # [B, 3, 1, H*W]

        # As officially: each dilation's 3 x 3 window counts its center, so that 9 values a dilation are spread.
        values = torch.cat([around, center.expand(-1, -1, len(self.dilations), -1)], dim=2)
        spread = values.std(dim=2, keepdim=True)

        # |difference| / (1e-8 + 0.1 * spread), both times 1e7: an exported graph loses summands as small as 1e-8
        return (-1e7 * (center - around).abs() / (0.1 + 1e6 * spread)).mean(1).softmax(1)


def neighbor_indices(height: int, width: int, dilations: Sequence[int], device: torch.device) -> Tensor:
    """Return indices [48, H*W] (8 a dilation) of each pixel's neighbors in the flat image; borders are replicated."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    offsets = torch.tensor([(d * y, d * x) for d in dilations for y, x in steps], device=device)
    rows = torch.arange(height, device=device)[None, :, None] + offsets[:, 0, None, None]
    columns = torch.arange(width, device=device)[None, None, :] + offsets[:, 1, None, None]
    return (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)


def _sparse_matrix(neighbors: Tensor, weights: Tensor) -> Tensor:
    """Build the sparse matrix [H*W, H*W] whose row p has `weights[:, p]` in the columns `neighbors[:, p]`."""
    count, pixels = neighbors.shape
    row_starts = torch.arange(0, count * pixels + 1, count, device=neighbors.device)
    with warnings.catch_warnings():
        # What is used of torch's sparse matrices is tested against a plain loop.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(
            row_starts,
            neighbors.T.flatten(),
            weights.T.flatten(),
            size=(pixels, pixels),
            check_invariants=False,  # a replicated border names the same neighbor twice: the product adds them up
        )
