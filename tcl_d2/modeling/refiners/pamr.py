"""PAMR: pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020), as a sparse matrix product."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ...config.ranges import check_values
from ..functional import map_size
from ..resize_matrices import linear_matrix
from .base import REFINER_REGISTRY, Refiner
from .sparse import matrix_of_rows


class PAMR(Refiner):
    """Averages each mask, again and again, over neighbors that look alike in the image.

    The affinities of an image are the same for all its masks: a sparse [H*W, H*W] matrix with 8 entries a dilation in
    each row, built once and multiplied with the masks `iterations` times. Those of a batch are blocks of one matrix.
    """

    def __init__(
        self, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24), whole_image: bool = False
    ):
        """Choose how often to average, and over which neighbors.

        Args:
            dilations: distances of the 8 neighbors, in pixels of the mask.
            whole_image: whether the scores of the whole image are refined at the output's size, rather than the masks
                of each window.
        """
        super().__init__()
        check_values("TEST.ZERO_SHOT.PAMR", ITERS=iterations, DILATIONS=dilations)
        self.iterations = iterations
        self.dilations = tuple(dilations)
        self.stage = "image" if whole_image else "crop"

    def forward(self, images: Tensor, scores: Tensor) -> Tensor:
        """Refine masks [B, K, H, W] -> fp32 [B, K, H, W] by the edges of their images [B, 3, H', W'].

        Images are resized to the masks (bilinear, align_corners=True). Gradients flow to both.
        """
        return self.bind(images)(scores)

    def bind(self, images: Tensor, input_per_image: Mapping | None = None) -> Callable[[Tensor], Tensor]:
        """Return `forward` for these images, with affinities built once for each size of masks."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return partial(self._average_by_gathering, images)  # a graph has no sparse matrices
        return partial(self._average, images, cache(partial(self._sparse_affinities, images)))

    def _average(self, images: Tensor, affinities: Callable[[int, int], Tensor], masks: Tensor) -> Tensor:
        """Average masks [B, K, H, W] with the affinities of their images, a function of (H, W)."""
        if images.ndim != 4 or masks.ndim != 4 or len(images) != len(masks):
            raise ValueError(
                "PAMR takes images [B, 3, H', W'] and their scores [B, K, H, W], not "
                f"{list(images.shape)} and {list(masks.shape)}."
            )
        if torch.is_grad_enabled() and (images.requires_grad or masks.requires_grad):
            return self._average_by_gathering(images, masks)

        with torch.autocast(masks.device.type, enabled=False):
            affinity = affinities(*map_size(masks))
            columns = masks.float().permute(0, 2, 3, 1).flatten(0, 2).contiguous()  # [B*H*W, K]
            for _ in range(self.iterations):
                columns = affinity @ columns
        return columns.view(len(masks), *masks.shape[-2:], -1).permute(0, 3, 1, 2).contiguous()

    def _average_by_gathering(self, images: Tensor, masks: Tensor) -> Tensor:
        """Average masks [B, K, H, W] in a graph, or with gradients: in 48 times their memory."""
        size = map_size(masks)
        with torch.autocast(masks.device.type, enabled=False):
            neighbors = neighbor_indices(*size, self.dilations, images.device)
            affinity = self.affinity(_resize(images, size).flatten(2), neighbors)
            affinity = affinity.transpose(1, 2).contiguous()[:, :, None]  # [B, H*W, 1, 48]
            indices = neighbors.T.flatten()
            values = masks.float().flatten(2).transpose(1, 2)  # [B, H*W, K]
            for _ in range(self.iterations):
                gathered = values.index_select(1, indices).unflatten(1, (-1, len(neighbors)))
                values = (affinity @ gathered)[:, :, 0]
        return values.transpose(1, 2).unflatten(2, size)

    def _sparse_affinities(self, images: Tensor, height: int, width: int) -> Tensor:
        """Build the affinities of images [B, 3, H', W'] at the size of masks, sparse [B*H*W, B*H*W]."""
        neighbors = neighbor_indices(height, width, self.dilations, images.device)
        return _sparse_matrix(neighbors, self.affinity(_resize(images, (height, width)).flatten(2), neighbors))

    def affinity(self, images: Tensor, neighbors: Tensor) -> Tensor:
        """Compute weights [B, 48, H*W] that add up to 1 over the neighbors of a pixel of images [B, 3, H*W]."""
        # As officially, each dilation's 3 x 3 window counts its center, so the deviation is of 9 values a dilation.
        # Taken of the differences, in which centers are 0, the sums of squares lose no digits.
        count = 9 * len(self.dilations)
        logits = []
        for channel in images.unbind(1):
            differences = channel[:, neighbors] - channel[:, None]  # [B, 48, H*W]
            squares = differences.square().sum(1, keepdim=True)
            variance = (squares - differences.sum(1, keepdim=True).square() / count) / (count - 1)
            spread = variance.clamp(min=1e-20).sqrt()  # a root of 0 has no gradient; there, differences are 0

            # |difference| / (1e-8 + 0.1 * spread), both times 1e7: an exported graph loses summands as small as 1e-8
            rate = -1e7 / images.shape[1] / (0.1 + 1e6 * spread)
            logits.append(differences.abs().mul(rate))
        return sum(logits[1:], logits[0]).softmax(1)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images [B, 3, H', W'] to fp32 [B, 3, H, W], bilinear with corners aligned; in a graph, by matrices."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        rows, columns = (linear_matrix(*sides, images.device) for sides in zip(map_size(images), size))
        return rows @ images.float() @ columns.T
    return F.interpolate(images.float(), size=size, mode="bilinear", align_corners=True)


def neighbor_indices(height: int, width: int, dilations: Sequence[int], device: torch.device) -> Tensor:
    """Return indices [48, H*W] (8 a dilation) of each pixel's neighbors in the flat image; borders are replicated."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    offsets = torch.tensor([(d * y, d * x) for d in dilations for y, x in steps], device=device)
    rows = torch.arange(height, device=device)[None, :, None] + offsets[:, 0, None, None]
    columns = torch.arange(width, device=device)[None, None, :] + offsets[:, 1, None, None]
    return (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)


def _sparse_matrix(neighbors: Tensor, weights: Tensor) -> Tensor:
    """Build the sparse matrix [B*H*W, B*H*W] of the weights [B, 48, H*W] of neighbors [48, H*W] within each image."""
    batch_size, count, pixels = weights.shape
    firsts = pixels * torch.arange(batch_size, device=neighbors.device)
    columns = (neighbors.T + firsts[:, None, None]).flatten(0, 1)
    return matrix_of_rows(columns, weights.transpose(1, 2).flatten(0, 1), batch_size * pixels)


@REFINER_REGISTRY.register()
def pamr(cfg: CfgNode) -> PAMR:
    settings = cfg.TEST.ZERO_SHOT.PAMR
    return PAMR(settings.ITERS, settings.DILATIONS, settings.WHOLE_IMAGE)
