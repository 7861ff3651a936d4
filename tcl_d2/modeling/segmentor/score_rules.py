"""From the scores of words, which come some at a time, to a result: the best class of each pixel, or all scores.

Two ways of the field are settings of one rule. TCL's: the class of the word with the largest score, or the background
where that is not above a constant. The dense CLIPs' (SCLIP and its successors): scores are cosines, of which a softmax
with a scale over all words makes probabilities; the class of the most probable word, or the background where that
probability is below a threshold.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...words.vocabulary import WordSubset


class ScoreSettings(NamedTuple):
    """How the scores of words become labels.

    Attributes:
        background_score: score that the background has besides its words, where there is a background: a constant, or
            a map fp32 [H, W]. A pixel is background where no class is above it; with a softmax, where none reaches it.
        logit_scale: scale of a softmax over words; 0 for none.
        area_threshold: classes that win not more than this share of the pixels of all classes but the background lose
            them (SCLIP's rule); 0 for none.
        refine: what is done with the scores of all classes at last, fp32 [K, H, W] -> [K, H, W]; None for nothing.
        keep_best: whether labels come with the score of the class at each pixel.
        enlarge: where the words of a class are joined before scores are enlarged, what enlarges them, [k, h, w] ->
            [k, H, W]; None where they come enlarged.
    """

    background_score: float | Tensor
    logit_scale: float = 0.0
    area_threshold: float = 0.0
    refine: Callable[[Tensor], Tensor] | None = None
    keep_best: bool = False
    enlarge: Callable[[Tensor], Tensor] | None = None

    @property
    def needs_all_scores(self) -> bool:
        """Whether labels need the scores of all classes at once."""
        return self.area_threshold > 0 or self.refine is not None

    @property
    def highest_background(self) -> float | Tensor:
        """The highest score at which a pixel is still background; a map where background_score is one."""
        if not self.logit_scale:
            return self.background_score
        score = self.background_score
        if not isinstance(score, Tensor):
            score = torch.tensor(score, dtype=torch.float32)
        below = torch.nextafter(score, torch.full_like(score, -math.inf))
        return below if below.ndim else below.item()


class JoinedWords:
    """Joins the words of each class, which come some at a time: a class has the score of its best word."""

    def __init__(self, subset: WordSubset):
        self._subset = subset
        self._first = 0
        self._words_left = Counter(subset.classes.tolist())
        self._best: dict[int, Tensor] = {}  # of classes whose words have not all come

    def join(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Take the scores [k, h, w] of the next k words; return those of the classes that are complete with them.

        Returns:
            scores [c, h, w], and the classes int64 [c].
        """
        places, classes = self._subset.split(self._first, len(scores))
        self._first += len(scores)
        complete = {}
        for place, index in zip(places.tolist(), classes.tolist()):
            best = self._best.pop(index, scores[place])
            self._best[index] = torch.maximum(best, scores[place])  # a copy, which does not hold the other words
            self._words_left[index] -= 1
            if not self._words_left[index]:
                complete[index] = self._best.pop(index)
        return torch.stack([*complete.values()]) if complete else scores[:0], torch.tensor(
            [*complete], dtype=torch.int64
        )


class ScoreRule:
    """Takes the scores of all words, some at a time in their order, and makes the output of one dataset."""

    def __init__(self, subset: WordSubset, settings: ScoreSettings):
        """Begin with no scores.

        Args:
            subset: the dataset's words.
            settings: how scores become labels.
        """
        self.subset = subset
        self.settings = settings
        self._first = 0
        self._joined = JoinedWords(subset)
        self._log_sum: Tensor | Any = None  # of the softmax, over the words so far, or the classes of joined ones

    def update(self, scores: Tensor) -> None:
        """Take the scores [k, H, W] of the next k words."""
        if self.settings.enlarge is not None:
            scores, classes = self._joined.join(scores)
            if len(classes):
                self.take(self.settings.enlarge(scores), classes)
            return

        places, classes = self.subset.split(self._first, len(scores))
        self._first += len(scores)
        if not len(places):
            return

        # All words in their order need no copy of their scores
        is_identity = torch.equal(places, torch.arange(len(scores)))
        self.take(scores if is_identity else scores[places.to(scores.device)], classes)

    def take(self, scores: Tensor, classes: Tensor) -> None:
        """Use the scores [k, H, W] of words of the classes [k]."""
        raise NotImplementedError

    def output(self) -> dict[str, Tensor]:
        """Return the result, after the last update."""
        raise NotImplementedError

    def _add_to_softmax(self, scores: Tensor) -> None:
        if self.settings.logit_scale:
            log_sum = torch.logsumexp(self.settings.logit_scale * scores, 0)
            self._log_sum = log_sum if self._log_sum is None else torch.logaddexp(self._log_sum, log_sum)

    def _probabilities(self, scores: Tensor) -> Tensor:
        """Return the softmax [..., H, W] of scores, in place; without a softmax, the scores."""
        if not self.settings.logit_scale:
            return scores
        return scores.mul_(self.settings.logit_scale).sub_(self._log_sum).exp_()


class RunningArgmax(ScoreRule):
    """Keeps the best class of each pixel, and holds no scores but its.

    Output:
        sem_seg_labels: int64 [H, W], the index of the class with the largest score, the first of several; the
            background is 0 where there is one; num_classes where a word of no class is best.
        sem_seg_scores: with `keep_best`, fp32 [H, W], the score of that class; the background's is not told.
    """

    _best: Tensor | Any = None
    _labels: Tensor | Any = None

    def take(self, scores: Tensor, classes: Tensor) -> None:
        if self.subset.background or self.settings.keep_best:  # otherwise the best score says all, probable or not
            self._add_to_softmax(scores)

        best, winner = scores.max(0)
        labels = classes.to(winner.device)[winner]
        if self._best is None:
            self._best, self._labels = best, labels
            return

        is_better = best > self._best
        self._best = torch.where(is_better, best, self._best)
        self._labels = torch.where(is_better, labels, self._labels)

    def output(self) -> dict[str, Tensor]:
        if self.subset.background or self.settings.keep_best:
            self._best = self._probabilities(self._best)
        if self.subset.background:
            self._labels = self._labels.masked_fill(self._best <= self.settings.highest_background, 0)
        best = {"sem_seg_scores": self._best} if self.settings.keep_best else {}
        return {"sem_seg_labels": self._labels, **best}


class AllScores(ScoreRule):
    """Keeps the scores of all classes.

    Output:
        sem_seg: fp32 [K, H, W], the best of each class's words; the background first where there is one. Where words
            of no class are looked for and there is no background, their best score follows as another class.
    """

    _scores: Tensor | Any = None

    def take(self, scores: Tensor, classes: Tensor) -> None:
        self._add_to_softmax(scores)

        if self._scores is None:
            count = max(self.subset.num_classes, int(self.subset.classes.max()) + 1)
            self._scores = scores.new_full((count, *scores.shape[1:]), -math.inf)

        for score, index in zip(scores, classes.tolist()):
            torch.maximum(self._scores[index], score, out=self._scores[index])

    def output(self) -> dict[str, Tensor]:
        scores = self._probabilities(self._scores)
        if self.settings.area_threshold:
            self._drop_small_classes(scores)
        if self.subset.background:
            scores[0].clamp_(min=self.settings.highest_background)
        if self.settings.refine is not None:
            scores = self.settings.refine(scores)
        return {"sem_seg": scores}

    def _drop_small_classes(self, scores: Tensor) -> None:
        """Set the scores of classes that win a small area to 0, in place."""
        first = int(self.subset.background)
        areas = torch.bincount(scores.argmax(0).flatten(), minlength=len(scores))[first:]
        is_small = areas <= self.settings.area_threshold * areas.sum()
        scores[first:][is_small] = 0


class ArgmaxOfAllScores(AllScores):
    """Keeps the scores of all classes, where the settings need them, and gives the best class of each pixel.

    Output:
        sem_seg_labels: see RunningArgmax.
        sem_seg_scores: see RunningArgmax.
    """

    def output(self) -> dict[str, Tensor]:
        best, labels = super().output()["sem_seg"].max(0)
        return {"sem_seg_labels": labels, **({"sem_seg_scores": best} if self.settings.keep_best else {})}


def build_score_rule(subset: WordSubset, settings: ScoreSettings, labels_only: bool) -> ScoreRule:
    """Build the rule that needs the least memory.

    Args:
        subset: the dataset's words.
        settings: how scores become labels.
        labels_only: whether labels are asked for, in place of scores.
    """
    if not labels_only:
        return AllScores(subset, settings)
    return (ArgmaxOfAllScores if settings.needs_all_scores else RunningArgmax)(subset, settings)
