"""LPOSS+: label propagation over pixels, after that over patches (Stojnić et al., CVPR 2025, arXiv 2503.19777)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ...config.ranges import check_values
from ...utils.errors import expect
from .base import REFINER_REGISTRY, Refiner, RefinerChain, to_colors
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
            (pixels,) = to_colors(images, self.pixel_mean, self.pixel_std)
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
        self._height, self._width = colors.shape[1:]
        self._tau, self._window = tau, window

        # What lies around the image is infinitely different, so that its weights are 0
        padded = F.pad(colors, [window // 2] * 4, value=torch.inf)
        self._neighbors = padded.unfold(1, window, 1).unfold(2, window, 1)  # [3, H, W, window, window]
        self._colors = colors

        # Row sums, in the same pass
        rows = torch.arange(self._height).split(max(1, _PIXELS_AT_ONCE // self._width))
        self._parts = [slice(int(part[0]), int(part[-1]) + 1) for part in rows]
        is_held = self._height * self._width * window**2 <= _MOST_EDGES
        bands, sums = [], []
        for part in self._parts:
            band = self.band(part)
            sums.append(band.values().view(-1, window**2).sum(1))
            if is_held:
                bands.append(band)
        self._bands = bands
        self._scale = inverse_roots(torch.cat(sums))[:, None]

    def multiply(self, values: Tensor) -> Tensor:
        """Multiply S with float64 [H * W, K]."""
        reach = self._window // 2
        scaled = (self._scale * values).view(self._height, self._width, -1)
        padded = F.pad(scaled, (0, 0, reach, reach, reach, reach)).flatten(0, 1)
        bands = self._bands or map(self.band, self._parts)
        return torch.cat([band @ padded for band in bands]).mul_(self._scale)

    def band(self, rows: slice) -> Tensor:
        """Build the weights of the pixels of some rows: sparse float64 [h * W, pixels of the padded image]."""
        padded_height, padded_width = (side + self._window - 1 for side in (self._height, self._width))
        places = torch.arange(padded_height * padded_width, device=self._colors.device, dtype=torch.int32)
        places = places.view(padded_height, padded_width)
        firsts = places[rows, : self._width].flatten()
        offsets = places[: self._window, : self._window].flatten()
        weights = self.weights(rows).flatten(2).flatten(0, 1).double()
        return matrix_of_rows(firsts[:, None] + offsets, weights, places.numel())

    def weights(self, rows: slice) -> Tensor:
        """Compute the weights of the pixels of some rows and their neighbors, fp32 [h, W, window, window]."""
        pairs = zip(self._colors[:, rows, :, None, None], self._neighbors[:, rows])
        squares = sum(((neighbors - color).square() for color, neighbors in pairs), self._colors.new_zeros(()))
        weights = squares.sqrt_().div_(-self._tau).exp_()
        weights[..., self._window // 2, self._window // 2] = 0  # a pixel is no neighbor of itself
        return weights


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
def lposs_pixels(cfg: CfgNode) -> PixelLPOSS:
    settings = cfg.TEST.ZERO_SHOT.LPOSS
    numbers = settings.TAU, settings.WINDOW, settings.ALPHA, settings.STEPS
    return PixelLPOSS(*numbers, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)


@REFINER_REGISTRY.register()
def lposs_plus(cfg: CfgNode) -> RefinerChain:
    return RefinerChain(lposs(cfg), lposs_pixels(cfg))
