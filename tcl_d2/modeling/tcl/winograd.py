"""3 x 3 convolutions of large maps with fewer products than taps: Winograd's minimal filtering, by matrix products.

Two neighbors of the result see four pixels by three taps: six products. Of sums of the pixels and sums of the taps it
takes four. In a map of doubled size two neighbors see three different pixels, and three products do in place of four.
In two dimensions the gains multiply: 16 in place of 36 products for four pixels of the result, and 9 in place of 16.

Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, CVPR 2016, section 4.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..encoders import linear

Maps = Tensor | Sequence[Tensor]  # in one tensor or several
_Results = TypeVar("_Results", bound=Maps)
BAND_BYTES = 16 * 2**20  # of a band's transformed input: small enough for caches, large enough for matrix products


class Filtering(NamedTuple):
    """How to filter a row by three taps: result = of_result @ ((of_taps @ taps) * (of_pixels @ pixels)).

    A window of `pixels` gives two pixels of `result`. The first nonzero value in each row of `of_pixels` and
    `of_result`, and in each column of the latter, is 1; the others are 1 and -1.
    """

    stride: int  # pixels from one window to the next
    of_pixels: tuple[tuple[int, ...], ...]
    of_taps: tuple[tuple[float, ...], ...]
    of_result: tuple[tuple[int, ...], ...]

    @property
    def scale(self) -> int:
        """Factor by which a side of the result is longer."""
        return 2 // self.stride


# Of a row as it is: two results of four pixels
FILTERING = Filtering(
    2,
    of_pixels=((1, 0, -1, 0), (0, 1, 1, 0), (0, 1, -1, 0), (0, 1, 0, -1)),
    of_taps=((1, 0, 0), (0.5, 0.5, 0.5), (-0.5, 0.5, -0.5), (0, 0, -1)),
    of_result=((1, 1, 1, 0), (0, 1, -1, 1)),
)

# Of a row whose pixels are doubled: two results of a pixel and its neighbors
FILTERING_DOUBLED = Filtering(
    1,
    of_pixels=((0, 1, 0), (1, -1, 0), (0, 1, -1)),
    of_taps=((1, 1, 1), (1, 0, 0), (0, 0, -1)),
    of_result=((1, 1, 0), (1, 0, 1)),
)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, filtering: Filtering) -> Tensor:
    """Convolve by 3 x 3 taps with padding 1, as F.conv2d does, but for rounding; once differentiable.

    Args:
        x: [B, C, h, w]; h and w are even for FILTERING.
        filtering: FILTERING, or FILTERING_DOUBLED for x enlarged to double size by nearest.

    Returns:
        [B, C', H, W] in channels_last, of x's size or of double size.
    """
    if x.shape[2] % filtering.stride or x.shape[3] % filtering.stride:
        raise ValueError(f"x must have even sides, not {tuple(x.shape[2:])}: its pixels are convolved by twos.")
    return _Convolution.apply(x, weight, bias, filtering)


def is_faster(x: Tensor, filtering: Filtering) -> bool:
    """Tell whether `convolve` is faster than torch's convolutions: in fp32 on a CPU, with many channels and pixels.

    Elsewhere products are so fast that the sums cost more than they save; so are convolutions where BLAS is slow. A
    traced graph should have torch's own convolution.
    """
    if not linear.is_fp32_on_cpu(x) or linear.blas_is_slow():
        return False

    # The taps' sums cost as the square of the channels; what is saved grows with the pixels of the result too
    batch_size, channels, height, width = x.shape
    stride = filtering.stride
    is_large = channels >= 384 and batch_size * height * width * filtering.scale**2 >= channels
    return is_large and height % stride == 0 and width % stride == 0


class _Convolution(torch.autograd.Function):
    """A convolution in bands of rows, whose parts fit into caches. In it, maps are [B, H, W, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, filtering: Filtering) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.filtering = filtering

        x, taps = x.permute(0, 2, 3, 1), _transform_taps(weight, filtering)
        scale, band = filtering.scale, _Band(filtering, x)
        result = x.new_empty(len(x), scale * x.shape[1], scale * x.shape[2], len(weight))
        for images, rows in _bands(x, filtering):
            pixels = band.transform_pixels(x[images], rows)
            products = band.memory("products", *pixels.shape[:-1], len(weight))
            torch.bmm(_as_matrices(pixels), taps.transpose(1, 2), out=_as_matrices(products))
            band.sum_products(products, bias, result[images, scale * rows.start : scale * rows.stop])

        return result.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_result: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        filtering = ctx.filtering

        x, grad_result = x.permute(0, 2, 3, 1), grad_result.permute(0, 2, 3, 1)
        taps = _transform_taps(weight, filtering)
        scale, band = filtering.scale, _Band(filtering, x)
        grad_x, grad_taps = x.new_zeros(x.shape), torch.zeros_like(taps)
        for images, rows in _bands(x, filtering):
            # Go back through the sums
            pixels = band.transform_pixels(x[images], rows)
            grad_products = band.spread_gradient(grad_result[images, scale * rows.start : scale * rows.stop])

            # Go back through the products
            grad_taps.baddbmm_(_as_matrices(grad_products).transpose(1, 2), _as_matrices(pixels))
            grad_pixels = band.memory("grad_pixels", *pixels.shape)
            torch.bmm(_as_matrices(grad_products), taps, out=_as_matrices(grad_pixels))
            band.add_gradient(grad_pixels, grad_x[images], rows)

        matrix = _square(filtering.of_taps, weight)
        grad_weight = (matrix.T @ grad_taps.flatten(1)).view(3, 3, *weight.shape[:2]).permute(2, 3, 0, 1)
        return grad_x.permute(0, 3, 1, 2), grad_weight, grad_result.sum((0, 1, 2)), None


def _bands(x: Tensor, filtering: Filtering) -> Iterator[tuple[slice, slice]]:
    """Divide a map into bands: slices of its images, and of its rows."""
    stride = filtering.stride
    windows_across = x.shape[2] // stride
    window_bytes = len(filtering.of_pixels) ** 2 * x.shape[3] * x.element_size()
    rows_at_once = stride * max(1, BAND_BYTES // (window_bytes * windows_across))
    images_at_once = max(1, rows_at_once // x.shape[1])
    for image in range(0, len(x), images_at_once):
        for row in range(0, x.shape[1], rows_at_once):
            yield slice(image, image + images_at_once), slice(row, min(row + rows_at_once, x.shape[1]))


def _square(matrix: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return the matrix that applies another one down and across, [N * N, M * M]."""
    factor = like.new_tensor(matrix)
    return torch.kron(factor, factor)


def _transform_taps(weight: Tensor, filtering: Filtering) -> Tensor:
    """Turn a weight [C', C, 3, 3] into factors of the products, N of them down and across: [N * N, C', C]."""
    taps = weight.permute(2, 3, 0, 1).flatten(0, 1)
    matrix = _square(filtering.of_taps, weight)
    return (matrix @ taps.flatten(1)).view(len(matrix), *taps.shape[1:])


def _as_matrices(x: Tensor) -> Tensor:
    """View [N, N, B, rows, columns, C] as [N * N, B * rows * columns, C]."""
    return x.view(x.shape[0] ** 2, -1, x.shape[-1])


class _Band:
    """The sums before and after the products, for one band after another, in memory that all of them share."""

    def __init__(self, filtering: Filtering, like: Tensor):
        """Begin without memory; all tensors will have the dtype and device of `like`."""
        self.filtering = filtering
        self._like = like
        self._memory: dict[str, Tensor] = {}

    def memory(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialized tensor, in the memory of the last one of this name if it fits.

        To get new memory from the system for each band would take as long as to fill it.
        """
        size = prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = self._like.new_empty(size)
        return self._memory[name][:size].view(shape)

    def transform_pixels(self, x: Tensor, rows: slice) -> Tensor:
        """Turn some rows of a map [B, H, W, C] into factors [N, N, B, rows, columns, C] of the products of windows."""
        # Frame the rows by their neighbors, which are 0 outside of the map
        framed = self.memory("framed", len(x), rows.stop - rows.start + 2, x.shape[2] + 2, x.shape[3]).zero_()
        inside, places = self._neighborhood(x, rows)
        framed[:, places, 1:-1] = x[:, inside]

        # Sum them across and down
        parts = self._split(framed)
        across = self.memory("across", len(self.filtering.of_pixels), *parts[0].shape)
        _combine(self.filtering.of_pixels, parts, across)
        parts = self._split(across)
        return _combine(self.filtering.of_pixels, parts, self.memory("pixels", len(across), *parts[0].shape))

    def add_gradient(self, grad_pixels: Tensor, grad_x: Tensor, rows: slice) -> None:
        """Add the gradient of transformed pixels to that of a map: `transform_pixels`, transposed."""
        count, _, batch_size, _, columns, channels = grad_pixels.shape
        height, width = rows.stop - rows.start + 2, grad_x.shape[2] + 2
        across = self.memory("grad_across", count, batch_size, height, columns, channels).zero_()
        _add_combined(self.filtering.of_pixels, grad_pixels, self._split(across))
        framed = self.memory("grad_framed", batch_size, height, width, channels).zero_()
        _add_combined(self.filtering.of_pixels, across, self._split(framed))

        # Bands overlap by the frame, whose pixels are other bands'
        inside, places = self._neighborhood(grad_x, rows)
        grad_x[:, inside] += framed[:, places, 1:-1]

    def sum_products(self, products: Tensor, bias: Tensor, result: Tensor) -> None:
        """Write a result [B, 2 * rows, 2 * columns, C'] as sums of products [N, N, B, rows, columns, C']."""
        sums = _combine(self.filtering.of_result, products, self.memory("sums", 2, *products.shape[1:]))
        for row, parts in enumerate(sums):
            _combine(self.filtering.of_result, parts, [result[:, row::2, column::2] for column in range(2)])
        result += bias

    def spread_gradient(self, grad_result: Tensor) -> Tensor:
        """Turn the gradient of a result into that of the products: `sum_products`, transposed."""
        matrix = list(zip(*self.filtering.of_result))
        parts = [[grad_result[:, row::2, column::2] for column in range(2)] for row in range(2)]
        sums = self.memory("grad_sums", 2, len(matrix), *parts[0][0].shape)
        for row_parts, row_sums in zip(parts, sums):
            _combine(matrix, row_parts, row_sums)
        return _combine(matrix, sums, self.memory("grad_products", len(matrix), *sums.shape[1:]))

    def _split(self, x: Tensor) -> list[Tensor]:
        """Split a framed dimension, the third one, into the first pixels of its windows, the second ones, and so on."""
        stride = self.filtering.stride
        stop = (x.shape[2] - 2) // stride * stride
        return [x[:, :, k : k + stop : stride] for k in range(len(self.filtering.of_pixels[0]))]

    @staticmethod
    def _neighborhood(x: Tensor, rows: slice) -> tuple[slice, slice]:
        """Return the rows with those above and below that the map has, and their places among framed rows."""
        first, last = max(rows.start - 1, 0), min(rows.stop + 1, x.shape[1])
        return slice(first, last), slice(first - rows.start + 1, last - rows.start + 1)


def _combine(matrix: Sequence[Sequence[int]], parts: Maps, results: _Results) -> _Results:
    """Write matrix @ parts into `results`; rows begin with a 1."""
    for factors, result in zip(matrix, results):
        (_, total), *others = [(factor, part) for factor, part in zip(factors, parts) if factor]
        for factor, part in others:
            total = torch.add(total, part, alpha=factor, out=result)
        if not others:
            result.copy_(total)
    return results


def _add_combined(matrix: Sequence[Sequence[int]], parts: Maps, results: Maps) -> None:
    """Add matrix.T @ parts to `results`."""
    for factors, part in zip(matrix, parts):
        for factor, result in zip(factors, results):
            if factor:
                result.add_(part, alpha=factor)
