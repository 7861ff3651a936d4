"""Inference over one image: sliding windows, padding to whole patches, and classes in parts of bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

# Bounds of the scores that are held at once, for vocabularies of thousands of words and for large images.
CLASSES_AT_ONCE = 64
SCORE_BYTES_AT_ONCE = 256 * 2**20


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


def window_starts(length: int, crop_size: int, stride: int) -> list[int]:
    """List where windows start along a side: every `stride` pixels, the last one shifted back inside."""
    if length <= crop_size:
        return [0]
    return [min(start, length - crop_size) for start in range(0, length - crop_size + stride, stride)]


class Windows:
    """The sliding windows of one image, and the average of their scores where they overlap.

    All windows of an image have one size: crop_size, or the image's side where that is shorter.
    """

    def __init__(self, image: Tensor, crop_size: int, stride: int):
        """Lay windows over an image.

        Args:
            image: [3, H, W].
            crop_size: side of the windows in pixels.
            stride: step between windows in pixels, 1 <= stride <= crop_size.
        """
        self.image = image
        rows, columns = (window_starts(length, crop_size, stride) for length in image.shape[-2:])
        self.slices = [(slice(y, y + crop_size), slice(x, x + crop_size)) for y in rows for x in columns]

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the crops, at most `batch_size` at once: [n, 3, h, w]."""
        for start in range(0, len(self.slices), batch_size):
            yield torch.stack([self.image[:, y, x] for y, x in self.slices[start : start + batch_size]])

    def average(self, score_batches: Iterable[Tensor]) -> Tensor:
        """Average the scores of the windows.

        Args:
            score_batches: scores [n, K, h, w] of the crops, in the order of `batches`; consumed once.

        Returns:
            fp32 [K, H, W].
        """
        total = count = None
        for (y, x), scores in zip(self.slices, chain.from_iterable(score_batches), strict=True):
            if total is None:
                total = scores.new_zeros(len(scores), *self.image.shape[-2:], dtype=torch.float32)
                count = torch.zeros_like(total[0])
            total[:, y, x] += scores.float()
            count[y, x] += 1
        return total / count


def classes_at_once(*sizes: tuple[int, int]) -> int:
    """Return how many classes' scores of these sizes (height, width) in pixels are held at once."""
    bytes_per_class = 4 * max(height * width for height, width in sizes)
    return max(1, min(CLASSES_AT_ONCE, SCORE_BYTES_AT_ONCE // bytes_per_class))


def iterate_scores(
    windows: Windows,
    encode: Callable[[Tensor], object],
    predict: Callable[[object, Tensor], Tensor],
    text_features: Tensor,
    size: tuple[int, int],
    windows_at_once: int,
) -> Iterator[Tensor]:
    """Yield scores fp32 [k, *size] of an image for one part of the classes after the other.

    Args:
        windows: of the image.
        encode: crops [n, 3, h, w] -> what `predict` takes; called once for each batch of windows.
        predict: what `encode` gave and text features [k, D] -> scores [n, k, h, w] at the crops' size.
        text_features: of all classes, [K, D].
        size: height and width of the scores.
        windows_at_once: crops that are encoded together.
    """
    parts = text_features.split(classes_at_once(size, tuple(windows.image.shape[-2:])))

    # The crops' features are held only where they are used again, for another part of the classes.
    features = map(encode, windows.batches(windows_at_once))
    if len(parts) > 1:
        features = list(features)

    for part in parts:
        scores = windows.average(predict(crop_features, part) for crop_features in features)
        yield F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
