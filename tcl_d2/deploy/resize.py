"""Bilinear resizing of scores in parts, with the arithmetic of torch's F.interpolate (align_corners=False)."""

from typing import NamedTuple

import numpy as np


class Side(NamedTuple):
    """The two source values beside each target value on a side.

    Attributes:
        first: index of the first one, int64 [n].
        second: index of the second one, int64 [n].
        share: weight of the second one, fp32 [n]; the first one has the rest.
    """

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray

    def part(self, start: int, stop: int) -> "Side":
        """Select target values."""
        return Side(*(values[start:stop] for values in self))

    @property
    def span(self) -> slice:
        return slice(int(self.first[0]), int(self.second[-1]) + 1)

    def apply(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Resize an axis; of it, `values` has only the span."""
        start = self.first[0]
        first, second = values.take(self.first - start, axis), values.take(self.second - start, axis)
        share = self.share if axis == -1 else self.share[:, None]
        return first * (1 - share) + second * share


def make_side(source: int, target: int) -> Side:
    """Place the target values of a side between its source values."""
    scale = np.float32(source) / np.float32(target)
    position = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    position = position.clip(0)
    first = np.minimum(position.astype(np.int64), source - 1)
    return Side(first, np.minimum(first + 1, source - 1), position - first.astype(np.float32))
