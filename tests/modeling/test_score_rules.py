"""Labels from scores that come some at a time: repeated words, several datasets at once, and bounded memory."""

import pytest
import torch

from tcl_d2.modeling import inference
from tcl_d2.modeling.score_rules import AllScores, ClassSubset, RunningArgmax
from tests import golden


def run(rule: type, scores: torch.Tensor, indices: list[int], background: bool, at_once: int) -> dict:
    """Give the scores [K, H, W] to a rule, `at_once` classes after the other."""
    running = rule(ClassSubset(torch.tensor(indices), background), background_score=0.6)
    for chunk in scores.split(at_once):
        running.update(chunk)
    return running.output()


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
        monkeypatch.setattr(inference, "SCORE_BYTES_AT_ONCE", bound)
        labels = model([{"image": image, "labels_only": True}])[0]["sem_seg_labels"]
        assert max(sizes) == most and sum(sizes) == len(figures["text_embedding"])
        assert torch.equal(labels, plain)
