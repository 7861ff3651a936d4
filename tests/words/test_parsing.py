"""Words as users write them: their bytes, and their length."""

import pytest

from tcl_d2.words.parsing import (
    MAX_WORD_LENGTH,
    class_names,
    split_background_words,
    split_templates,
    split_words,
    unique_names,
)
from tcl_d2.words.vocabulary import make_vocabulary


def in_bytes(text: str, encoding: str = "utf-8") -> str:
    """Return a text as Python has it of a command line under LANG=C, without UTF-8."""
    return text.encode(encoding).decode("ascii", "surrogateescape")


@pytest.mark.fault("words that are not ASCII under LANG=C without UTF-8", "read as UTF-8")
def test_bytes_of_a_command_line_are_decoded():
    assert split_words(in_bytes("läva | 草, brick")) == [["läva", "草"], "brick"]
    assert split_background_words(in_bytes("Himmel, Wände")) == ["Himmel", "Wände"]


@pytest.mark.fault("a word that is not UTF-8", "refused by the word")
@pytest.mark.parametrize("word", [in_bytes("läva", "latin-1"), "\ud800"])
def test_what_is_not_utf_8_is_refused(word):
    """It would be drawn as boxes, or end the drawing, and mean nothing to a model."""
    for read in (split_words, split_background_words, lambda word: make_vocabulary([word])):
        with pytest.raises(ValueError, match="UTF-8"):
            read(word)


@pytest.mark.fault("a word that is longer than any model reads", "refused at once, shortened")
def test_long_words_are_refused():
    for read in (split_words, split_background_words, lambda word: make_vocabulary(["brick"], negative=[word])):
        with pytest.raises(ValueError, match="'ababab.* 100,000 characters") as refused:
            read("ab" * 50_000)
        assert len(str(refused.value)) < 300
    assert split_words("a" * MAX_WORD_LENGTH)


def test_a_word_may_bring_templates_of_its_own():
    assert split_templates("lawn @ itap of a {}. @art of the {}.") == ("lawn", ("itap of a {}.", "art of the {}."))
    for word in ("lawn", "me@home", "a @ b"):
        assert split_templates(word) == (word, ())
    classes = split_words("lawn @ a {} | grass, brick")
    assert classes == [["lawn @ a {}", "grass"], "brick"] and class_names(classes) == ["lawn", "brick"]
    assert unique_names([["bag @ a {}", "handbag"], ["bag", "sack"]]) == ["bag (handbag)", "bag (sack)"]


@pytest.mark.fault("a word with a template of its own that has no place for it, or no word", "an error shows the form")
@pytest.mark.parametrize("word", ["lawn @ a {} @ art", "lawn @ a {} of {}", "@ a {}", "lawn @ a {} @"])
def test_wrong_templates_of_a_word_are_refused(word):
    with pytest.raises(ValueError, match="such as 'lawn @ itap of a {}. @ art"):
        make_vocabulary([word])
