"""Labels from scores that come some at a time: repeated words, several datasets at once, and bounded memory."""

import numpy as np
import pytest
import torch

from tcl_d2.modeling.segmentor import words_to_labels
from tcl_d2.modeling.segmentor.score_rules import (
    AllScores,
    ArgmaxOfAllScores,
    RunningArgmax,
    ScoreSettings,
    build_score_rule,
)
from tcl_d2.words.vocabulary import WordSubset, join_vocabularies, make_vocabulary
from tests import golden


def run(rule: type, scores: torch.Tensor, indices: list[int], background: bool, at_once: int) -> dict:
    """Give the scores [K, H, W] to a rule, `at_once` words after the other; each word is a class."""
    classes = torch.arange(len(indices)) + int(background)
    subset = WordSubset(torch.tensor(indices), classes, len(indices) + int(background), background)
    return feed(rule(subset, ScoreSettings(background_score=0.6)), scores, at_once)


def feed(rule, scores: torch.Tensor, at_once: int) -> dict:
    for chunk in scores.split(at_once):
        rule.update(chunk)
    return rule.output()


@pytest.mark.fault("a class word that stands twice in a dataset's metadata", "every other class keeps its label")
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 1, 2, 3, 4, 5, 6], [2, 2, 5, 0], [6, 4, 4, 4]])
def test_labels_are_the_argmax_of_the_selected_scores(indices, at_once, background):
    """Whatever the order, and however often a word stands in the selection."""
    scores = torch.rand(7, 9, 11, generator=torch.Generator().manual_seed(0))
    expected = scores[indices]
    if background:
        expected = torch.cat([torch.full_like(scores[:1], 0.6), expected])
    labels = run(RunningArgmax, scores, indices, background, at_once)["sem_seg_labels"]
    assert torch.equal(expected.gather(0, labels[None])[0], expected.max(0).values)
    assert torch.equal(labels, expected.argmax(0))
    assert torch.equal(run(AllScores, scores, indices, background, at_once)["sem_seg"], expected)


def test_large_images_get_fewer_classes_at_once(monkeypatch):
    """The scores that are held at once stay below the bound, down to one class; the labels stay the same."""
    figures = golden.load()["inference"]
    model = golden.build_model()
    model.set_text_embeddings(figures["text_embedding"])
    image = figures["slide_image"][0].float()
    plain = model([{"image": image, "labels_only": True}])[0]["sem_seg_labels"]
    sizes, update = [], RunningArgmax.update

    def watch(self, scores):
        sizes.append(len(scores))
        update(self, scores)

    monkeypatch.setattr(RunningArgmax, "update", watch)
    for bound, most in ((2 * 4 * image[0].numel(), 2), (1, 1)):
        sizes.clear()
        monkeypatch.setattr(words_to_labels, "SCORE_BYTES_AT_ONCE", bound)
        labels = model([{"image": image, "labels_only": True}])[0]["sem_seg_labels"]
        assert max(sizes) == most and sum(sizes) == len(figures["text_embedding"])
        assert torch.equal(labels, plain)


# ------------------------------------------------------------------------------------ several words a class

VOCABULARIES = {
    "several words": make_vocabulary([["a", "b", "c"], "d", ["e", "f"]]),
    "background score": make_vocabulary([["a", "b"], "c"], background=True),
    "background words": make_vocabulary([["a", "b"], "c", "d"], background=["e", "a"]),
    "negative words alone": make_vocabulary([["a", "b"], "c"], negative=["d", "e"]),
    "negative words": make_vocabulary(["a", "b"], background=["c"], negative=["d", "e"]),
}


def plain_scores(cosines: np.ndarray, vocabulary, scale: float, threshold: float) -> np.ndarray:
    """Compute what the rules do from all scores of a vocabulary's words [W, H, W] at once."""
    scores = cosines
    if scale:
        powers = np.exp(scale * cosines.astype(np.float64))
        scores = powers / powers.sum(0)

    rows = max(vocabulary.num_classes, max(vocabulary.classes) + 1)
    by_class = np.full((rows, *scores.shape[1:]), -np.inf)
    for score, index in zip(scores, vocabulary.classes):
        by_class[index] = np.maximum(by_class[index], score)
    if vocabulary.background:
        by_class[0] = np.maximum(by_class[0], threshold)
    return by_class


@pytest.mark.parametrize("scale", [0.0, 40.0])
@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_streamed_labels_are_those_of_all_scores(name, at_once, scale):
    """Also where another dataset's words, in another order, are streamed along."""
    vocabulary, other = VOCABULARIES[name], make_vocabulary(["z", "e", "c", "a"])
    words, (_, subset) = join_vocabularies([other, vocabulary])
    cosines = torch.rand(len(words), 9, 11, generator=torch.Generator().manual_seed(0)) / 4

    settings = ScoreSettings(background_score=0.3 if scale else 0.15, logit_scale=scale)
    expected = plain_scores(cosines[subset.words].numpy(), vocabulary, scale, settings.background_score)
    labels = feed(build_score_rule(subset, settings, labels_only=True), cosines, at_once)["sem_seg_labels"]
    scores = feed(build_score_rule(subset, settings, labels_only=False), cosines, at_once)["sem_seg"]
    assert len(np.unique(labels)) > 1 and np.array_equal(labels.numpy(), expected.argmax(0))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("background", [False, True])
def test_classes_of_small_area_lose_their_pixels(background):
    """Of 10 x 10 pixels class a wins 10, b 20, c the rest; the limit is above a tenth."""
    cosines = torch.zeros(3, 10, 10)
    cosines[0, 0], cosines[1, 1:3], cosines[2, 3:] = 1, 1, 1
    cosines[1] += 0.5  # second everywhere
    words, (subset,) = join_vocabularies([make_vocabulary(["a", "b", "c"], background)])
    rule = build_score_rule(subset, ScoreSettings(0.0, 1.0, area_threshold=0.1), labels_only=True)
    assert isinstance(rule, ArgmaxOfAllScores)
    labels = feed(rule, cosines, 2)["sem_seg_labels"] - int(background)
    assert (labels[:3] == 1).all() and (labels[3:] == 2).all()


@pytest.mark.parametrize("at_once", [1, 100])
@pytest.mark.parametrize("name", ["background score", "background words"])
@pytest.mark.parametrize("labels_only", [False, True])
def test_background_may_be_a_map(name, at_once, labels_only):
    """A pixel is background where no class is above the map there; of equal scores the background's counts."""
    words, (subset,) = join_vocabularies([VOCABULARIES[name]])
    generator = torch.Generator().manual_seed(0)
    scores, background = torch.rand(len(words), 9, 11, generator=generator), torch.rand(9, 11, generator=generator)
    background[0] = scores.amax(0)[0]
    expected = plain_scores(scores[subset.words].numpy(), VOCABULARIES[name], 0.0, background.numpy())
    assert 0 < (expected.argmax(0)[1:] == 0).mean() < 1 and (expected.argmax(0)[0] == 0).all()

    output = feed(build_score_rule(subset, ScoreSettings(background), labels_only), scores, at_once)
    if labels_only:
        assert np.array_equal(output["sem_seg_labels"].numpy(), expected.argmax(0))
    else:
        np.testing.assert_allclose(output["sem_seg"].numpy(), expected, rtol=0, atol=0)


def test_threshold_is_reached_by_an_equal_probability():
    """As in the releases: a pixel is background where its largest probability is less; TCL's constant wins a tie."""
    words, (subset,) = join_vocabularies([make_vocabulary(["a"], background=True)])
    for scale, label in ((40.0, 1), (0.0, 0)):
        settings = ScoreSettings(background_score=1.0, logit_scale=scale)
        rule = build_score_rule(subset, settings, labels_only=True)
        assert feed(rule, torch.ones(1, 1, 1), 2)["sem_seg_labels"].item() == label
