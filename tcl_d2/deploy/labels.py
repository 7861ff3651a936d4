"""From scores of words to classes: modeling.score_rules on arrays, without torch."""

import math

import numpy as np

from .card import ModelCard, VocabularyCard


class ScoreRule:
    """Makes class scores, whose argmax is the labels, of the scores of words."""

    def __init__(self, card: ModelCard, vocabulary: VocabularyCard):
        self.logit_scale = card.logit_scale
        self.area_threshold = card.area_threshold
        self.vocabulary = vocabulary
        self.words, self.classes = (np.array(x) for x in (vocabulary.word_indices, vocabulary.class_indices))

        # With a softmax, a pixel whose best probability equals the score is no background
        self.highest_background = np.float32(card.background_score)
        if self.logit_scale:
            self.highest_background = np.nextafter(self.highest_background, np.float32(-math.inf))

    def class_scores(self, scores: np.ndarray) -> np.ndarray:
        """Return the best score of each class's words: scores [W, H, W'] -> fp32 [K, H, W']; see `finish`."""
        lowest = 0.0 if self.logit_scale else -math.inf  # of a background without words
        results = np.full((len(self.vocabulary.names), *scores.shape[1:]), lowest, np.float32)
        for score, index in zip(self._word_scores(scores), self.classes):
            np.maximum(results[index], score, out=results[index])
        return results

    def finish(self, scores: np.ndarray) -> np.ndarray:
        """Apply the area rule, if H x W is a whole image, and the background to class scores [K, H, W], in place."""
        if self.area_threshold:
            first = int(self.vocabulary.has_background)
            areas = np.bincount(scores.argmax(0).ravel(), minlength=len(scores))[first:]
            is_small = areas <= np.float32(self.area_threshold) * areas.sum()
            scores[first:][is_small] = 0
        if self.vocabulary.has_background:
            np.maximum(scores[0], self.highest_background, out=scores[0])
        return scores

    def _word_scores(self, scores: np.ndarray) -> np.ndarray:
        scores = scores[self.words]
        if self.logit_scale:
            scores *= np.float32(self.logit_scale)
            scores -= scores.max(0)
            np.exp(scores, out=scores)
            scores /= scores.sum(0)
        return scores
