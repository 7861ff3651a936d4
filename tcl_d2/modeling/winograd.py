"""3 x 3 convolutions of large maps with fewer products than taps: Winograd's minimal filtering, by matrix products.

Two neighbors of the result see four pixels by three taps: six products. Of sums of the pixels and sums of the taps it
takes four. In a map of doubled size two neighbors see three different pixels, and three products do in place of four.
In two dimensions the gains multiply: 16 in place of 36 products for four pixels of the result, and 9 in place of 16.

Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, CVPR 2016, section 4.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from . import linear

BAND_BYTES = 16 * 2**20  # of a band's transformed input: small enough for caches, large enough for matrix products


class Filtering(NamedTuple):
    """How to filter a row by three taps: result = of_result @ ((of_taps @ taps) * (of_pixels @ pixels)).

    `pixels` are a window of the row, `result` the two pixels that come of it. Rows of `of_pixels` and `of_result`, and
    columns of the latter, begin with a 1 where they are not 0; other values are 1 and -1.
    """

    stride: int  # pixels from one window to the next
    of_pixels: tuple[tuple[int, ...], ...]
    of_taps: tuple[tuple[float, ...], ...]
    of_result: tuple[tuple[int, ...], ...]


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
        x: [B, C, h, w]; even h and w for FILTERING.
        weight: [C', C, 3, 3].
        bias: [C'].
        filtering: FILTERING, or FILTERING_DOUBLED for x enlarged to double size by nearest.

    Returns:
        [B, C', H, W] in channels_last, of x's size or of double size.

    Raises:
        ValueError: h or w is not even.
    """
    if x.shape[2] % filtering.stride or x.shape[3] % filtering.stride:
        raise ValueError(f"x must have even sides, not {tuple(x.shape[2:])}: its pixels are convolved by twos.")
    return _Convolution.apply(x, weight, bias, filtering)


def is_faster(x: Tensor, filtering: Filtering) -> bool:
    """Tell whether `convolve` is faster than torch's convolutions: in fp32 on a CPU, with many channels and pixels.

    Other devices and dtypes have fast products, for which the sums cost more than they save, and so have convolutions
    where BLAS is slow. Where a graph is traced, torch's own convolution is the one to have in it.
    """
    if linear.blas_is_slow() or not linear.is_fp32_on_cpu(x):
        return False

    # The taps' sums cost as the square of the channels; what is saved grows with the pixels of the result too
    batch_size, channels, height, width = x.shape
    stride = filtering.stride
    is_large = channels >= 384 and batch_size * height * width * (2 // stride) ** 2 >= channels
    return is_large and height % stride == 0 and width % stride == 0


class _Convolution(torch.autograd.Function):
    """A convolution in bands of rows, whose parts fit into caches. In it, maps are [B, H, W, C]."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, filtering: Filtering) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.filtering = filtering

        x, taps = x.permute(0, 2, 3, 1), _transform_taps(weight, filtering)
        scale = 2 // filtering.stride
        result = x.new_empty(len(x), scale * x.shape[1], scale * x.shape[2], len(weight))
        for images, rows in _bands(x, filtering):
            pixels = _transform_pixels(_frame(x[images], rows), filtering)
            products = torch.bmm(_as_matrices(pixels), taps.transpose(1, 2)).view(*pixels.shape[:-1], len(weight))
            _sum_products(products, result[images, scale * rows.start : scale * rows.stop], bias, filtering)

        return result.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_result: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        filtering = ctx.filtering

        x, grad_result = x.permute(0, 2, 3, 1), grad_result.permute(0, 2, 3, 1)
        scale, taps = 2 // filtering.stride, _transform_taps(weight, filtering)
        grad_x, grad_taps = x.new_zeros(x.shape), torch.zeros_like(taps)
        for images, rows in _bands(x, filtering):
            # Go back through the sums and the products
            pixels = _transform_pixels(_frame(x[images], rows), filtering)
            grad_band = grad_result[images, scale * rows.start : scale * rows.stop]
            grad_products = _as_matrices(_spread_gradient(grad_band, filtering))
            grad_taps.baddbmm_(grad_products.transpose(1, 2), _as_matrices(pixels))

            # Windows and bands overlap, and each adds to its pixels' gradient
            grad_pixels = torch.bmm(grad_products, taps).view_as(pixels)
            _add_framed(grad_x[images], rows, _gather_gradient(grad_pixels, filtering))

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


def _neighborhood(x: Tensor, rows: slice) -> tuple[slice, int, int]:
    """Return a band's rows with those above and below in the map, and how many of these are outside of it."""
    first, last = max(rows.start - 1, 0), min(rows.stop + 1, x.shape[1])
    return slice(first, last), first - (rows.start - 1), rows.stop + 1 - last


def _frame(x: Tensor, rows: slice) -> Tensor:
    """Cut a band with a pixel around it out of a map, 0 outside of the map: [B, rows + 2, W + 2, C]."""
    inside, above, below = _neighborhood(x, rows)
    return F.pad(x[:, inside], (0, 0, 1, 1, above, below))


def _add_framed(x: Tensor, rows: slice, band: Tensor) -> None:
    """Add a band with a pixel around it to a map: `_frame`, transposed."""
    inside, above, below = _neighborhood(x, rows)
    x[:, inside] += band[:, above : band.shape[1] - below, 1:-1]


def _count_windows(band: Tensor, filtering: Filtering) -> tuple[int, int]:
    """Return how many windows a framed band has down and across."""
    return (band.shape[1] - 2) // filtering.stride, (band.shape[2] - 2) // filtering.stride


def _places(count: int, filtering: Filtering) -> list[slice]:
    """Return where a row has the first pixels of `count` windows, the second ones, and so on."""
    stride = filtering.stride
    return [slice(k, k + count * stride, stride) for k in range(len(filtering.of_pixels[0]))]


def _square(matrix: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return the matrix that applies another one down and across, [N * N, M * M]."""
    matrix = like.new_tensor(matrix)
    return torch.kron(matrix, matrix)


def _as_matrices(x: Tensor) -> Tensor:
    """Flatten [N, N, B, rows, columns, C] to [N * N, B * rows * columns, C]."""
    return x.flatten(0, 1).flatten(1, -2)


def _transform_taps(weight: Tensor, filtering: Filtering) -> Tensor:
    """Turn a weight [C', C, 3, 3] into factors of the products, N of them down and across: [N * N, C', C]."""
    taps = weight.permute(2, 3, 0, 1).flatten(0, 1)
    matrix = _square(filtering.of_taps, weight)
    return (matrix @ taps.flatten(1)).view(len(matrix), *taps.shape[1:])


def _transform_pixels(band: Tensor, filtering: Filtering) -> Tensor:
    """Turn a framed band into the other factors, of all its windows: [N, N, B, rows, columns, C]."""
    rows, columns = _count_windows(band, filtering)
    across = _combine(filtering.of_pixels, [band[:, :, place] for place in _places(columns, filtering)])
    return _combine(filtering.of_pixels, [across[:, :, place] for place in _places(rows, filtering)])


def _gather_gradient(grad_pixels: Tensor, filtering: Filtering) -> Tensor:
    """Turn the gradient of transformed pixels into that of a framed band: `_transform_pixels`, transposed."""
    count, _, batch_size, rows, columns, channels = grad_pixels.shape
    height, width = rows * filtering.stride + 2, columns * filtering.stride + 2
    across = grad_pixels.new_zeros(count, batch_size, height, columns, channels)
    _add_combined(filtering.of_pixels, grad_pixels, [across[:, :, place] for place in _places(rows, filtering)])
    band = grad_pixels.new_zeros(batch_size, height, width, channels)
    _add_combined(filtering.of_pixels, across, [band[:, :, place] for place in _places(columns, filtering)])
    return band


def _sum_products(products: Tensor, result: Tensor, bias: Tensor, filtering: Filtering) -> None:
    """Write a result [B, 2 * rows, 2 * columns, C'] as sums of products [N, N, B, rows, columns, C']."""
    for row, parts in enumerate(_combine(filtering.of_result, products)):
        _combine(filtering.of_result, parts, [result[:, row::2, column::2] for column in range(2)])
    result += bias


def _spread_gradient(grad_result: Tensor, filtering: Filtering) -> Tensor:
    """Turn the gradient of a result into that of the products: `_sum_products`, transposed."""
    matrix = list(zip(*filtering.of_result))
    rows = [_combine(matrix, [grad_result[:, row::2, column::2] for column in range(2)]) for row in range(2)]
    return _combine(matrix, rows)


def _combine(
    matrix: Sequence[Sequence[int]], parts: Sequence[Tensor], results: Sequence[Tensor] | None = None
) -> Sequence[Tensor]:
    """Write matrix @ parts into `results`, a new tensor [N, ...] where there is none; rows begin with a 1."""
    if results is None:
        results = parts[0].new_empty(len(matrix), *parts[0].shape)
    for factors, result in zip(matrix, results):
        (_, total), *others = [(factor, part) for factor, part in zip(factors, parts) if factor]
        for factor, part in others:
            total = torch.add(total, part, alpha=factor, out=result)
        if not others:
            result.copy_(total)
    return results


def _add_combined(matrix: Sequence[Sequence[int]], parts: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    """Add matrix.T @ parts to `results`."""
    for factors, part in zip(matrix, parts):
        for factor, result in zip(factors, results):
            if factor:
                result.add_(part, alpha=factor)
