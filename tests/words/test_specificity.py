"""What users write of classes: negative words, and parents, from specific to general."""

import pytest

from tcl_d2.words.parsing import split_negative
from tcl_d2.words.specificity import at_specificity
from tcl_d2.words.words import Words

TEXT = "dog | puppy < animal | beast, car, cat < animal, not: shadow | dark spot"
NEGATIVE = ["not: shadow", "dark spot"]


@pytest.mark.parametrize(
    "specificity, expected",
    [
        ("word", ["dog", "car", "cat"]),
        ("synonyms", [["dog", "puppy"], "car", "cat"]),
        ("parents", [["animal", "beast", "dog", "puppy", "cat"], "car"]),
    ],
)
def test_a_class_is_its_word_its_synonyms_or_its_parent(specificity, expected):
    """Of a text and of lists alike, such as the lines of a file; negative words stay."""
    lists = [["dog", "puppy < animal", "beast"], "car", ["cat < animal"], NEGATIVE]
    for classes in (TEXT, lists):
        assert at_specificity(classes, specificity) == [*expected, NEGATIVE]


@pytest.mark.parametrize("text", ["animal, dog < animal", "dog < animal, animal"])
def test_a_parent_may_be_a_class_itself(text):
    assert [set(words) for words in at_specificity(text, "parents")] == [{"animal", "dog"}]
    assert sorted(at_specificity(text)) == ["animal", "dog"]


def test_words_without_parents_are_left_alone():
    """What is no word is left to the errors of a vocabulary."""
    for specificity in ("synonyms", "parents"):
        assert at_specificity(["a", ["b", "c"], "a", [], 7], specificity) == ["a", ["b", "c"], "a", [], 7]


@pytest.mark.fault("a parent without a class, or without words, or of a parent", "an error shows how it is written")
@pytest.mark.parametrize("text", ["< animal", "dog <", "dog < animal < thing", "dog | < | "])
def test_half_a_family_is_refused(text):
    with pytest.raises(ValueError, match="'dog . puppy < animal'"):
        at_specificity(text)


@pytest.mark.fault("negative words with a parent", "an error names them")
def test_negative_words_have_no_parent():
    with pytest.raises(ValueError, match="'not: shadow < thing'"):
        at_specificity("dog, not: shadow < thing")


def test_another_specificity_is_refused():
    with pytest.raises(ValueError, match="'vague'.*word, synonyms, parents"):
        at_specificity("dog", "vague")


def test_negative_words_are_taken_out():
    classes = ["car", "not: shadow", ["NOT : wall", "fence"], ["tree", "not: a class's second word"], 7, []]
    assert split_negative(classes) == (["car", classes[3], 7, []], ["shadow", "wall", "fence"])


@pytest.mark.fault("'not:' without a word", "an error shows how negative words are written")
@pytest.mark.parametrize("entry", ["not:", "not:  ", ["not: ", " "]])
def test_not_without_a_word_is_refused(entry):
    with pytest.raises(ValueError, match="'not: shadow'"):
        split_negative(["car", entry])


@pytest.mark.parametrize(
    "background, negative, names",
    [
        (False, (), ["dog", "cat"]),
        (True, (), ["background", "dog", "cat"]),
        (True, ("shadow", "wall"), ["background", "dog", "cat", "not: shadow | wall"]),
    ],
)
def test_names_are_in_the_order_of_the_labels(background, negative, names):
    assert Words([["dog", "puppy"], "cat"], background, negative).names == names
