"""From the scores of classes, which come some at a time, to a result: the best class of each pixel, or all scores."""

from typing import NamedTuple

import torch
from torch import Tensor


class ClassSubset(NamedTuple):
    """The classes of one dataset among those that masks are made for."""

    indices: Tensor  # int64 [K]; a class word that stands twice in a dataset has the same index twice
    background: bool  # whether a background comes before them

    def split(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Find the subset's classes among those from `first` on, `count` in number.

        Returns:
            two tensors int64 [k]: their positions in the subset (without its background), rising, and their places
            among the `count`.
        """
        positions = torch.nonzero((self.indices >= first) & (self.indices < first + count))[:, 0]
        return positions, self.indices[positions] - first


class ScoreRule:
    """Takes the scores of all classes, some at a time in their order, and makes the output of one dataset."""

    def __init__(self, subset: ClassSubset, background_score: float):
        """Begin with no scores.

        Args:
            subset: the classes of the dataset.
            background_score: constant score of the background, where the subset has one.
        """
        self.subset = subset
        self.background_score = background_score
        self._first = 0

    def update(self, scores: Tensor) -> None:
        """Take the scores [k, H, W] of the next k classes."""
        positions, rows = self.subset.split(self._first, len(scores))
        self._first += len(scores)
        if not len(positions):
            return

        # All classes in their order need no copy of their scores.
        is_identity = torch.equal(rows, torch.arange(len(scores)))
        self.take(scores if is_identity else scores[rows], positions)

    def take(self, scores: Tensor, positions: Tensor) -> None:
        """Use the scores [k, H, W] of the subset's classes at `positions` [k]."""
        raise NotImplementedError

    def output(self) -> dict[str, Tensor]:
        """Return the result, after the last update."""
        raise NotImplementedError


class RunningArgmax(ScoreRule):
    """Keeps the best class of each pixel, and holds no scores but its.

    Output:
        sem_seg_labels: int64 [H, W], the index of the class with the largest score, the first of several; the
            background is 0 where there is one.
    """

    _best: Tensor | None = None
    _labels: Tensor | None = None

    def take(self, scores: Tensor, positions: Tensor) -> None:
        best, winner = scores.max(0)
        labels = positions.to(winner.device)[winner] + int(self.subset.background)

        if self._best is None:
            lowest = self.background_score if self.subset.background else -torch.inf
            self._best = torch.full_like(best, lowest)
            self._labels = torch.zeros_like(labels)

        is_better = best > self._best
        self._best = torch.where(is_better, best, self._best)
        self._labels = torch.where(is_better, labels, self._labels)

    def output(self) -> dict[str, Tensor]:
        return {"sem_seg_labels": self._labels}


class AllScores(ScoreRule):
    """Keeps the scores of all classes.

    Output:
        sem_seg: fp32 [K, H, W]; the background's constant score comes first where there is one.
    """

    _scores: Tensor | None = None

    def take(self, scores: Tensor, positions: Tensor) -> None:
        if self._scores is None:
            count = len(self.subset.indices) + int(self.subset.background)
            self._scores = scores.new_full((count, *scores.shape[1:]), self.background_score)

        self._scores[positions.to(scores.device) + int(self.subset.background)] = scores

    def output(self) -> dict[str, Tensor]:
        return {"sem_seg": self._scores}
