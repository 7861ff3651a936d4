"""Vocabularies: several words a class, backgrounds of words, words of no class, datasets' words, bad input."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from tcl_d2.modeling.segmentor.score_rules import ScoreSettings, build_score_rule
from tcl_d2.words.vocabulary import (
    Vocabulary,
    dataset_classes,
    dataset_vocabulary,
    join_vocabularies,
    leave_to_first,
    make_vocabulary,
)


@pytest.mark.parametrize(
    "arguments, words, classes, num_classes",
    [
        ((["cat", ["man", "woman"]],), "cat man woman", (0, 1, 1), 2),
        ((["cat", "dog"], True), "cat dog", (1, 2), 3),
        ((["cat", "bed"], ["sky", "bed"]), "sky bed cat bed", (0, 0, 1, 2), 3),
    ],
)
def test_words_and_their_classes(arguments, words, classes, num_classes):
    background = len(arguments) > 1 and arguments[1] is not False
    assert make_vocabulary(*arguments) == Vocabulary(tuple(words.split()), classes, num_classes, background)


def test_negative_words_are_of_no_class():
    """With a background too."""
    vocabulary = make_vocabulary(["cat"], ["sky"], negative=["shadow", "tree"])
    assert vocabulary == Vocabulary(("sky", "cat", "shadow", "tree"), (0, 1, 2, 2), 2, True)
    assert make_vocabulary(["cat"], negative=["shadow"]) == Vocabulary(("cat", "shadow"), (0, 1), 1, False)


@pytest.mark.fault("a negative word among the words of a class, or of the background", "an error names it")
@pytest.mark.parametrize("arguments", [([["cat", "not: dog"]],), (["cat"], ["Not : dog"])])
def test_negative_words_among_others(arguments):
    with pytest.raises(ValueError, match="'[Nn]ot ?: dog' stands among other words"):
        make_vocabulary(*arguments)


@pytest.mark.fault("a word that is asked for and negative", "an error names it")
@pytest.mark.parametrize(
    "background, negative, message",
    [
        (False, ["tree", "man"], "'man' is a negative word, and is asked for too"),
        (["sky"], ["sky"], "'sky' is a negative word, and is asked for too"),
        (False, [" "], "not blank"),
        (False, ["tree", "tree"], "twice: tree"),
        (False, "tree", "at least one class word"),
    ],
)
def test_unusable_negative_words(background, negative, message):
    with pytest.raises(ValueError, match=message):
        make_vocabulary(["cat", ["person", "man"]], background, negative=negative)


@pytest.mark.parametrize(
    "classes, background, message",
    [
        ([], False, "at least one class word"),
        ("cat", False, "at least one class word"),
        (["cat", []], False, "Class 1 .* empty list"),
        (["cat", ["man", " "]], False, "not blank"),
        (["cat", 3.0], False, "not blank"),
        (["cat", ["man", "cat"]], False, "stand twice: cat"),
        ([["cat", "cat"]], False, "stand twice: cat"),
        (["cat"], ["sky", "sky"], "stand twice: sky"),
    ],
)
def test_unusable_vocabularies(classes, background, message):
    with pytest.raises(ValueError, match=message):
        make_vocabulary(classes, background)


@pytest.fixture
def dataset(request):
    name = "vocabulary_test"
    DatasetCatalog.register(name, list)
    yield MetadataCatalog.get(name).set(**request.param)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "dataset", [{"stuff_classes": ["background", "cat", "dog"], "background": True}], indirect=True
)
def test_classes_of_a_dataset(dataset):
    assert dataset_classes(dataset.name) == (["cat", "dog"], True)
    assert dataset_classes(dataset.name, [["cat", "kitten"], "dog"]) == ([["cat", "kitten"], "dog"], True)
    words = [["sky", "wall"], "cat", "dog"]
    assert dataset_classes(dataset.name, words) == (["cat", "dog"], ["sky", "wall"])
    dataset.set(class_words=words)
    assert dataset_classes(dataset.name) == (["cat", "dog"], ["sky", "wall"])
    with pytest.raises(ValueError, match="has 3 classes, but there are words for 1"):
        dataset_classes(dataset.name, ["cat"])


def test_words_of_several_vocabularies_are_looked_for_once():
    words, (first, second) = join_vocabularies([make_vocabulary(["a", "b"]), make_vocabulary([["c", "b"]], True)])
    assert words == ["a", "b", "c"]
    assert first.words.tolist() == [0, 1] and first.classes.tolist() == [0, 1]
    assert second.words.tolist() == [2, 1] and second.classes.tolist() == [1, 1]


def test_words_of_several_classes():
    """Each class keeps them; labels are those of the first, so that without them they are the same."""
    classes = [["toilet", "stool", "can"], "stool", ["can", "tin"], ["tin", "can"], "cat"]
    vocabulary = make_vocabulary(classes, shared_words=True)
    words, (subset,) = join_vocabularies([vocabulary])
    assert words == ["toilet", "stool", "can", "tin", "cat"] and subset.words.tolist() == [0, 1, 2, 1, 2, 3, 3, 2, 4]
    assert subset.classes.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 4]

    scores = torch.rand(5, 6, 7)
    rule = build_score_rule(subset, ScoreSettings(0.0), labels_only=True)
    rule.update(scores)
    remaining = leave_to_first(classes)
    assert remaining == [["toilet", "stool", "can"], "tin", "cat"]
    _, (other,) = join_vocabularies([make_vocabulary(remaining)])
    other_rule = build_score_rule(other, ScoreSettings(0.0), labels_only=True)
    other_rule.update(scores)
    expected = torch.tensor([0, 2, 4])[other_rule.output()["sem_seg_labels"]]
    assert torch.equal(rule.output()["sem_seg_labels"], expected)
    with pytest.raises(ValueError, match="twice: stool"):
        make_vocabulary([["toilet", "stool"], ["stool", "stool"]], shared_words=True)


def test_large_benchmarks_as_vocabularies():
    """ADE-847 has all its published synonyms, which 41 times stand for several classes."""
    vocabulary = dataset_vocabulary("zeroshot_ade847_val")
    assert (vocabulary.num_classes, len(vocabulary.words), len(set(vocabulary.words))) == (847, 1281, 1235)
    person = [word for word, index in zip(vocabulary.words, vocabulary.classes) if index == 11]
    assert person == ["person", "individual", "someone", "somebody", "mortal", "soul"]
    assert make_vocabulary(leave_to_first(dataset_classes("zeroshot_ade847_val")[0])).num_classes == 826
    vocabulary = dataset_vocabulary("zeroshot_context459_val")
    assert vocabulary.words == tuple(MetadataCatalog.get("zeroshot_context459_val").stuff_classes)
