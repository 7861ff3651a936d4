"""Sliding-window inference over one image, and padding of crops to whole patches."""

from collections.abc import Callable

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


def slide(score: Callable[[Tensor], Tensor], image: Tensor, crop: int, stride: int, batch: int = 8) -> Tensor:
    """Scores an image by windows and averages where they overlap.

    Args:
        score: crops [n, 3, h, w] -> scores [n, K, h, w].
        image: [3, H, W].
        crop, stride: side and step of the windows in pixels, 1 <= stride <= crop; a side shorter than `crop` is used
            whole.
        batch: crops scored at once.

    Returns:
        scores fp32 [K, H, W].
    """
    if not 1 <= stride <= crop:
        raise ValueError(
            f"The window's stride must be in 1..{crop} (its side), not {stride}: some pixels have no score."
        )
    height, width = image.shape[-2:]
    corners = [(y, x) for y in window_starts(height, crop, stride) for x in window_starts(width, crop, stride)]
    total, count = None, image.new_zeros(height, width, dtype=torch.float32)
    for i in range(0, len(corners), batch):
        some = corners[i : i + batch]
        scores = score(torch.stack([image[:, y : y + crop, x : x + crop] for y, x in some])).float()
        if total is None:
            total = scores.new_zeros(scores.shape[1], height, width)
        for (y, x), one in zip(some, scores):
            total[:, y : y + crop, x : x + crop] += one
            count[y : y + crop, x : x + crop] += 1
    return total / count
