"""LPOSS+: label propagation over pixels, after that over patches (Stojnić et al., CVPR 2025, arXiv 2503.19777)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ...config.ranges import check_values
from ...utils.errors import expect
from .base import REFINER_REGISTRY, Refiner, RefinerChain
from .lposs import lposs
from .propagation import inverse_roots, propagate
from .sparse import matrix_of_rows

_KEY = "TEST.ZERO_SHOT.LPOSS"
_WORDS_AT_ONCE = 16
_PIXELS_AT_ONCE = 2**15  # whose edges are computed together, some 100 MB
_MOST_EDGES = 2**27  # that are held, 1.6 GB: those of 0.8 million pixels


class PixelLPOSS(Refiner):
    """Spreads scores over the pixels of an image, between neighbors of like color, at the size that the model sees.

    As released, the result is that of ten steps of conjugate gradients, which is not yet the solution.
    """

    stage = "input"

    def __init__(
        self,
        tau: float = 0.01,
        window: int = 13,
        alpha: float = 0.95,
        steps: int = 10,
        pixel_mean: Sequence[float] = (0.0, 0.0, 0.0),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    ):
        """Choose the graph and how scores spread; the defaults are the release's.

        Images come normalized with `pixel_mean` and `pixel_std`; by default they are in 0..255.

        Args:
            tau: difference of colors at which a weight is 1/e of that of equal ones; the lightness is in 0..1.
            window: side of the square of neighbors, in pixels.
            alpha: share in 0..1 that pixels take over from their neighbors.
            steps: of conjugate gradients; 0 for as many as the solution needs.
        """
        super().__init__()
        check_values(_KEY, TAU=tau, WINDOW=window, ALPHA=alpha, STEPS=steps)
        expect(window % 2 == 1, f"{_KEY}.WINDOW", window, "an odd number of pixels")
        self.tau = tau
        self.window = window
        self.alpha = alpha
        self.steps = steps
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)

    def forward(self, images: Tensor, scores: Tensor) -> Tensor:
        """Spread the scores of an image: [1, K, H, W] -> fp32 [1, K, H, W]."""
        return self.bind(images)(scores)

    def bind(self, images: Tensor, input_per_image: Mapping | None = None) -> Callable[[Tensor], Tensor]:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            mean, std = (images.new_tensor(values)[:, None, None] for values in (self.pixel_mean, self.pixel_std))
            pixels = (images[0] * std + mean).round().clamp(0, 255)
            graph = PixelGraph(scaled_lab(pixels / 255), self.tau, self.window)
        return partial(self._spread, graph)

    def _spread(self, graph: "PixelGraph", scores: Tensor) -> Tensor:
        with torch.autocast(scores.device.type, enabled=False):
            parts = [
                propagate(graph.multiply, part.flatten(1).T, self.alpha, self.steps).float()
                for part in scores[0].split(_WORDS_AT_ONCE)
            ]
        return torch.cat(parts, 1).T.contiguous().view(scores.shape)


class PixelGraph:
    """The matrix S of neighboring pixels, symmetric, with eigenvalues in -1..1.

    It is made of bands of rows. They are held, unless there are too many edges: then each product makes them again.
    """

    def __init__(self, colors: Tensor, tau: float, window: int):
        """Connect the pixels of an image; for the last two see PixelLPOSS.

        Args:
            colors: fp32 [3, H, W].
        """
        self._colors = colors.flatten(1).contiguous()
        self._size = tuple(colors.shape[1:])
        self._tau = tau
        sides = torch.arange(window, device=colors.device) - window // 2
        offsets = torch.cartesian_prod(sides, sides)
        self._offsets = offsets[offsets.any(1)]  # without the pixel itself

        self._parts = torch.arange(self._colors.shape[1], device=colors.device).split(_PIXELS_AT_ONCE)
        sums = [self.weights(pixels)[1].sum(1, dtype=torch.float64) for pixels in self._parts]
        self._scale = inverse_roots(torch.cat(sums))
        self._bands: list[Tensor] | None = None
        if self._colors.shape[1] * len(self._offsets) <= _MOST_EDGES:
            self._bands = [self.band(pixels) for pixels in self._parts]

    def multiply(self, values: Tensor) -> Tensor:
        """Multiply S with float64 [H * W, K]."""
        bands = self._bands or map(self.band, self._parts)
        return torch.cat([band @ values for band in bands])

    def band(self, pixels: Tensor) -> Tensor:
        """Build the rows of S of some pixels, indices [p]: sparse float64 [p, H * W]."""
        neighbors, weights = self.weights(pixels)
        values = weights.double() * self._scale[pixels, None] * self._scale[neighbors]
        return matrix_of_rows(neighbors, values, self._colors.shape[1])

    def weights(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the weights of the edges of some pixels, indices [p].

        Returns:
            indices of their n neighbors, int64 [p, n], and the weights, fp32 [p, n]; 0 for those outside the image.
        """
        height, width = self._size
        rows = pixels[:, None] // width + self._offsets[:, 0]
        columns = pixels[:, None] % width + self._offsets[:, 1]
        is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        neighbors = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)

        squares = sum((channel[neighbors] - channel[pixels, None]).square() for channel in self._colors)
        return neighbors, torch.exp(-squares.sqrt() / self._tau) * is_inside


def scaled_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB in 0..1, fp32 [3, H, W], to CIE Lab (D65): L / 100, a / 128, b / 128."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).pow(2.4), rgb / 12.92)
    to_xyz = rgb.new_tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    )
    white = rgb.new_tensor([0.95047, 1.0, 1.08883])
    xyz = torch.tensordot(to_xyz, linear, 1) / white[:, None, None]
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856).pow(1 / 3), 7.787 * xyz + 4 / 29)
    return torch.stack([(116 * y - 16) / 100, 500 * (x - y) / 128, 200 * (y - z) / 128])


@REFINER_REGISTRY.register()
def lposs_plus(cfg: CfgNode) -> RefinerChain:
    settings = cfg.TEST.ZERO_SHOT.LPOSS
    numbers = settings.TAU, settings.WINDOW, settings.ALPHA, settings.STEPS
    return RefinerChain(lposs(cfg), PixelLPOSS(*numbers, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
