"""Inference over images: sliding windows, and padding to whole patches."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

import torch
from torch import Tensor
from torch.nn import functional as F

from ...utils.windows import window_starts
from ..functional import map_size, resize_scores


def pad_to_multiple(images: Tensor, multiple: int) -> tuple[Tensor, tuple[slice, slice]]:
    """Pad [B, C, H, W] with zeros so that both sides are multiples; left and top get floor(rest / 2).

    Returns:
        the padded images, and the slices (rows, columns) at which the original lies in them.
    """
    height, width = images.shape[-2:]
    extra_y, extra_x = -height % multiple, -width % multiple
    top, left = extra_y // 2, extra_x // 2
    padded = F.pad(images, (left, extra_x - left, top, extra_y - top))
    return padded, (slice(top, top + height), slice(left, left + width))


def pad_below(images: Tensor, multiple: int, value: Tensor) -> Tensor:
    """Pad [B, C, H, W] at the bottom and at the right with a value of each channel [C, 1, 1] to multiples."""
    height, width = images.shape[-2:]
    size = height + -height % multiple, width + -width % multiple
    if size == (height, width):
        return images
    padded = value.expand(*images.shape[:2], *size).clone()
    padded[..., :height, :width] = images
    return padded


def window_slices(height: int, width: int, crop_size: int, stride: int) -> list[tuple[slice, slice]]:
    """List the sliding windows of an image as slices (rows, columns); for the arguments see Windows."""
    crop_size = crop_size or max(height, width)
    rows, columns = (window_starts(length, crop_size, stride) for length in (height, width))
    return [(slice(y, y + crop_size), slice(x, x + crop_size)) for y in rows for x in columns]


class Windows:
    """The sliding windows of one image, and the average of their scores where they overlap.

    All windows of an image have one size: crop_size, or the image's side where that is shorter.
    """

    def __init__(self, image: Tensor, crop_size: int, stride: int, result_size: tuple[int, int] | None = None):
        """Lay windows over an image.

        Args:
            image: [3, H, W].
            crop_size: side of the windows in pixels; 0: the whole image is the window.
            stride: step between windows in pixels, 1 <= stride <= crop_size.
            result_size: height and width that averages are enlarged to; None for the image's.
        """
        self.image = image
        self.result_size = result_size or map_size(image)
        self.slices = window_slices(*map_size(image), crop_size, stride)

    def average(self, scores: Iterable[Tensor]) -> Tensor:
        """Average the scores [K, h, w] of the windows, in the order of `slices`: fp32 [K, H, W]."""
        if len(self.slices) == 1:
            (window_scores,) = scores
            return window_scores.float()

        scores = iter(scores)
        first = next(scores)
        total = first.new_zeros(len(first), *map_size(self.image), dtype=torch.float32)
        count = torch.zeros_like(total[0])
        for (y, x), window_scores in zip(self.slices, chain([first], scores), strict=True):
            total[:, y, x] += window_scores.float()
            count[y, x] += 1
        return total.div_(count)

    def enlarge(self, scores: Tensor) -> Tensor:
        """Resize averages [K, H, W] to [K, *result_size]."""
        return resize_scores(scores[None], self.result_size)[0]


def batch_windows(windows: Iterable[Windows], batch_size: int) -> Iterator[Tensor]:
    """Yield the crops of images whose windows have one size, at most `batch_size` at once: [n, 3, h, w]."""
    crops = (image_windows.image[:, y, x] for image_windows in windows for y, x in image_windows.slices)
    while batch := list(islice(crops, batch_size)):
        yield torch.stack(batch)
