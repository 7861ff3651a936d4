"""Sliding-window inference over one image, and padding of crops to whole patches."""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(images: Tensor, multiple: int) -> tuple[Tensor, tuple[slice, slice]]:
    """Zero-pads [B, C, H, W] so that both sides are multiples; left and top get floor(rest / 2).

    Returns:
        the padded images, and the slices (rows, columns) at which the original lies in them.
    """
    height, width = images.shape[-2:]
    extra_y, extra_x = -height % multiple, -width % multiple
    top, left = extra_y // 2, extra_x // 2
    padded = F.pad(images, (left, extra_x - left, top, extra_y - top))
    return padded, (slice(top, top + height), slice(left, left + width))


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows of `crop` start along a side: every `stride`, the last one shifted back inside."""
    if length <= crop:
        return [0]
    return [min(start, length - crop) for start in range(0, length - crop + stride, stride)]


class Windows:
    """The windows of one image, and the average of their scores where they overlap."""

    def __init__(self, image: Tensor, crop: int, stride: int):
        """
        Args:
            image: [3, H, W].
            crop, stride: side and step of the windows in pixels, 1 <= stride <= crop; a side shorter than `crop` is
                used whole. ValueError for others.
        """
        if not 1 <= stride <= crop:
            raise ValueError(
                f"The window's stride must be in 1..{crop} (its side), not {stride}: some pixels have no score."
            )
        self.image = image
        self.crop = crop
        rows, columns = (window_starts(length, crop, stride) for length in image.shape[-2:])
        self.slices = [(slice(y, y + crop), slice(x, x + crop)) for y in rows for x in columns]

    def batches(self, count: int) -> Iterator[Tensor]:
        """The crops, at most `count` at once: [n, 3, h, w]."""
        for i in range(0, len(self.slices), count):
            yield torch.stack([self.image[:, y, x] for y, x in self.slices[i : i + count]])

    def average(self, batches: Iterable[Tensor]) -> Tensor:
        """Scores [n, K, h, w] of the crops, in the batches that they were given in -> fp32 [K, H, W]."""
        total = count = None
        for (y, x), scores in zip(self.slices, chain.from_iterable(batches), strict=True):
            if total is None:
                total = scores.new_zeros(len(scores), *self.image.shape[-2:], dtype=torch.float32)
                count = torch.zeros_like(total[0])
            total[:, y, x] += scores.float()
            count[y, x] += 1
        return total / count
