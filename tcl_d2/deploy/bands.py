"""Scores of a whole image, a band of rows at a time, so that memory does not grow with the image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..utils.windows import window_starts
from .card import ModelCard
from .resize import make_side

_BYTES_AT_ONCE = 64 * 2**20  # of the scores of a band


@dataclass
class ScoreBands:
    """Runs the windows of an image row by row, and averages those that each band of the result needs.

    Attributes:
        image: as the model sees it, RGB uint8 [H, W, 3].
        size: height and width of the result.
        predict: crops fp32 [n, 3, h, w] -> scores of words fp32 [n, W, h', w'], at any resolution.
        num_words: W.
    """

    image: np.ndarray
    size: tuple[int, int]
    card: ModelCard
    predict: Callable[[np.ndarray], np.ndarray]
    num_words: int

    def __post_init__(self):
        height, width = self.image.shape[:2]
        crop_size = self.card.crop_size or max(height, width)
        self.crop = (min(crop_size, height), min(crop_size, width))
        self.tops = window_starts(height, crop_size, self.card.stride)
        self.lefts = window_starts(width, crop_size, self.card.stride)
        self._windows: dict[int, np.ndarray] = {}  # the scores of the windows of a row, by its top

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows of the result, from the top down, and their scores fp32 [W, rows, width]."""
        rows, columns = (make_side(*sides) for sides in zip(self.image.shape, self.size))
        longest = max(self.size[1], self.image.shape[1])
        step = max(1, _BYTES_AT_ONCE // (4 * self.num_words * longest))

        for start in range(0, self.size[0], step):
            band = slice(start, min(start + step, self.size[0]))
            if self.size == self.image.shape[:2]:
                yield band, self._average(band)
                continue

            part = rows.part(band.start, band.stop)
            scores = self._average(part.span)
            yield band, part.apply(columns.apply(scores[..., columns.span], -1), -2)

    def _average(self, rows: slice) -> np.ndarray:
        """Average scores [W, rows, W'] of rows of the image over the windows that see them."""
        tops = [top for top in self.tops if top < rows.stop and top + self.crop[0] > rows.start]
        self._windows = {top: scores for top, scores in self._windows.items() if top in tops}
        height, width = rows.stop - rows.start, self.image.shape[1]
        total = np.zeros((self.num_words, height, width), np.float32)
        count = np.zeros((height, width), np.float32)

        for top in tops:
            if top not in self._windows:
                self._windows[top] = self._predict_row(top)
            first, last = max(rows.start, top), min(rows.stop, top + self.crop[0])
            for left, scores in zip(self.lefts, self._windows[top]):
                place = slice(first - rows.start, last - rows.start), slice(left, left + self.crop[1])
                total[(slice(None), *place)] += self._enlarge(scores, first - top, last - top)
                count[place] += 1
        return total / count

    def _predict_row(self, top: int) -> np.ndarray:
        """Run the windows of a row: their scores [n, W, h, w]."""
        at_once = self.card.windows_at_once
        batches = (self.lefts[start : start + at_once] for start in range(0, len(self.lefts), at_once))
        return np.concatenate([self.predict(self._crops(top, lefts)) for lefts in batches])

    def _crops(self, top: int, lefts: list[int]) -> np.ndarray:
        """Cut windows out, padded: fp32 [n, 3, h, w]."""
        (height, width), (rows, columns), (above, before) = self.crop, *self._padding()
        mean = np.array(self.card.pixel_mean, np.float32)[:, None, None]
        crops = np.broadcast_to(mean, (len(lefts), 3, rows, columns)).copy()
        for crop, left in zip(crops, lefts):
            pixels = self.image[top : top + height, left : left + width].transpose(2, 0, 1)
            crop[:, above : above + height, before : before + width] = pixels
        return crops

    def _padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size of padded windows, and where (rows, columns) a window lies in the padded one."""
        multiple = self.card.pad_to
        if min(self.crop) < self.card.patch_size:
            multiple = max(multiple, self.card.patch_size)
        extra = tuple(-side % multiple for side in self.crop)
        size = self.crop[0] + extra[0], self.crop[1] + extra[1]
        return size, (0, 0) if self.card.squeezes_padding else (extra[0] // 2, extra[1] // 2)

    def _enlarge(self, scores: np.ndarray, first: int, last: int) -> np.ndarray:
        """Enlarge scores [W, h, w] of a padded window, and return rows `first` to before `last` of the window."""
        size, (above, before) = self._padding()
        if self.card.squeezes_padding:
            size = self.crop
        rows, columns = (make_side(*sides) for sides in zip(scores.shape[1:], size))
        rows, columns = rows.part(above + first, above + last), columns.part(before, before + self.crop[1])
        return rows.apply(columns.apply(scores[..., rows.span, columns.span], -1), -2)
