"""LPOSS: label propagation over patches (Stojnić et al., CVPR 2025, arXiv 2503.19777)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ...config.ranges import check_values
from ..functional import map_size, resize_scores
from .base import REFINER_REGISTRY, Refiner
from .propagation import inverse_roots, propagate
from .sparse import coalesced_matrix, plus_transpose

if TYPE_CHECKING:
    from ..encoders.vision import VisionEncoder

_PIXELS_AT_ONCE = 2 * 448 * 448  # of windows, in the vision model
_SIMILARITIES_AT_ONCE = 2**24  # 64 MB
_KEY = "TEST.ZERO_SHOT.LPOSS"


class LPOSS(Refiner):
    """Spreads scores over the patches of all windows of an image: between those that look alike and are near.

    Patches are those of a frozen vision model, DINO's in the paper. Scores of another grid are brought to theirs. As
    released, the result is that of ten steps of conjugate gradients, which is not yet the solution.
    """

    stage = "windows"

    def __init__(
        self,
        load_vision: "Callable[[], VisionEncoder]",
        neighbors: int = 400,
        gamma: float = 3.0,
        sigma: float = 100.0,
        alpha: float = 0.95,
        steps: int = 10,
    ):
        """Choose the graph and how scores spread; the defaults are the release's.

        Args:
            load_vision: gives the vision model, whose values of the last block say which patches are alike.
            neighbors: patches that one is connected with, itself among them; all, where there are fewer.
            gamma: power of the similarities.
            sigma: distance at which a weight is 1/e of that at no distance, in pixels of the image that the model sees.
            alpha: share in 0..1 that patches take over from their neighbors.
            steps: of conjugate gradients; 0 for as many as the solution needs.
        """
        super().__init__()
        check_values(_KEY, NEIGHBORS=neighbors, GAMMA=gamma, SIGMA=sigma, ALPHA=alpha, STEPS=steps)
        self.load_vision = load_vision
        self.neighbors = neighbors
        self.gamma = gamma
        self.sigma = sigma
        self.alpha = alpha
        self.steps = steps

    def load(self) -> None:
        self.load_vision()

    def bind(
        self, images: Tensor, input_per_image: Mapping | None = None, corners: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Build the graph of the windows of an image, and return what spreads scores [N, K, h, w] over it.

        Args:
            images: normalized windows [N, 3, H, W].
            corners: see Refiner.bind; None for one window, the whole image.
        """
        if corners is None:
            if len(images) > 1:
                raise ValueError(f"LPOSS is given {len(images)} windows without their corners in the image.")
            corners = torch.zeros(1, 2, device=images.device)

        # The choice of neighbors turns on small differences
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            features = self.vision_features(images.float())
            grid = map_size(features)
            unit = F.normalize(features.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
            graph = self.graph(unit, patch_centers(corners, map_size(images), grid))
        return partial(self._spread, graph, grid)

    def vision_features(self, windows: Tensor) -> Tensor:
        """Compute the vision model's values of each patch, [N, C, h, w]; windows are resized to whole patches."""
        vision = self.load_vision().to(windows.device)
        height, width = windows.shape[-2:]
        rows, columns = (max(1, round(side / vision.patch_size)) * vision.patch_size for side in (height, width))
        parts = windows.split(max(1, _PIXELS_AT_ONCE // (height * width)))
        return torch.cat([vision.values(resize_scores(part, (rows, columns))) for part in parts])

    def graph(self, features: Tensor, centers: Tensor) -> Tensor:
        """Build the matrix S of patches: sparse float64 [N, N], symmetric, with eigenvalues in -1..1.

        Args:
            features: of length 1, fp32 [N, C].
            centers: row and column of each patch's center in the image, in pixels, fp32 [N, 2].
        """
        weights = self.weights(features, centers).double()
        values, (rows, columns) = weights.values(), weights.indices()
        sums = torch.zeros(len(features), dtype=torch.float64, device=values.device).index_add_(0, rows, values)
        scale = inverse_roots(sums)
        return coalesced_matrix(weights, values * scale[rows] * scale[columns])

    def weights(self, features: Tensor, centers: Tensor) -> Tensor:
        """Compute the weights W of the edges, sparse fp32 [N, N] in torch's COO layout; arguments as `graph`'s.

        An edge that both ends chose counts twice.
        """
        count = min(self.neighbors, len(features))
        similarities, neighbors = [], []
        for part in features.split(max(1, _SIMILARITIES_AT_ONCE // len(features))):
            similarity, neighbor = (part @ features.T).topk(count)
            similarities.append(similarity)
            neighbors.append(neighbor)
        columns = torch.cat(neighbors)

        distances = (centers[columns] - centers[:, None]).square().sum(2).sqrt()
        weights = torch.cat(similarities).clamp(min=0).pow(self.gamma) * torch.exp(-distances / self.sigma)
        is_itself = columns == torch.arange(len(columns), device=columns.device)[:, None]
        return plus_transpose(columns, weights.masked_fill(is_itself, 0.0))

    def _spread(self, graph: Tensor, grid: tuple[int, int], scores: Tensor) -> Tensor:
        """Spread the scores of windows [N, K, h, w] -> fp32 [N, K, h', w'] on the vision model's grid."""
        with torch.autocast(scores.device.type, enabled=False):
            scores = _to_grid(scores.float(), grid).permute(0, 2, 3, 1)  # windows, rows, columns, words
            spread = propagate(graph.matmul, scores.flatten(0, 2), self.alpha, self.steps)
        return spread.float().view(scores.shape).permute(0, 3, 1, 2).contiguous()


def patch_centers(corners: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return the centers of the patches of windows in the image, in pixels, fp32 [N * h * w, 2].

    Args:
        corners: first row and column of each window, [N, 2].
        size: of a window, in pixels.
        grid: of its patches, (h, w).
    """
    rows, columns = ((torch.arange(n, device=corners.device) + 0.5) * (side / n) for side, n in zip(size, grid))
    centers = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    return (corners[:, None] + centers).flatten(0, 1)


def _to_grid(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize scores [N, K, h, w] to a grid: bilinear, and averaged where the grid is coarser."""
    if map_size(scores) == grid:
        return scores
    return F.interpolate(scores, size=grid, mode="bilinear", align_corners=False, antialias=True)


@REFINER_REGISTRY.register()
def lposs(cfg: CfgNode) -> LPOSS:
    from ..encoders.vision import DINO_POSITIONS, check_vision_model, load_vision_encoder  # which import timm

    settings = cfg.TEST.ZERO_SHOT.LPOSS
    check_vision_model(_KEY, settings.NAME)
    normalization = tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)
    model = _KEY, settings.NAME, settings.PRETRAINED
    load_vision = partial(load_vision_encoder, *model, DINO_POSITIONS, *normalization)
    return LPOSS(load_vision, settings.NEIGHBORS, settings.GAMMA, settings.SIGMA, settings.ALPHA, settings.STEPS)
