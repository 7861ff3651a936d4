"""Words of classes: each class has one or several.

In a vocabulary, a class is its word (str), or the list of its words. The first word is the class's name. What users
write has negative words besides, see split_negative, and parent words, see utils.specificity.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

BACKGROUND = "background"  # the name of that class
NO_CLASS = "(no class)"  # what fits TEST.ZERO_SHOT.FILLER_WORDS best, where there is no background
_NEGATIVE = re.compile(r"\s*not\s*:", re.IGNORECASE)  # how an entry of negative words begins


def split_words(text: str) -> list[str | list[str]]:
    """Return the classes of a text such as "person | man | woman, grass".

    Commas separate classes, and bars the words of a class.
    """
    classes = [strip_all(part.split("|")) for part in text.split(",")]
    return as_vocabulary(words for words in classes if words)


def split_background_words(text: str) -> list[str]:
    """Return the words of a background, such as "sky, wall | tree": commas and bars separate them alike."""
    return strip_all(re.split("[,|]", text))


def list_words(name: str, words: str | Iterable) -> list:
    """Return words that were given as a text, see split_background_words, or as any sequence, in a list.

    Args:
        name: of the argument, for the error.
        words: the words.

    Raises:
        ValueError: neither, such as a dict or a set, which has no order.
    """
    if isinstance(words, str):
        return split_background_words(words)
    if isinstance(words, (bytes, Mapping, set, frozenset)) or not isinstance(words, Iterable):
        hint = ""
        if isinstance(words, Mapping):
            hint = " (of a dict of words by name: [[name, *words] for name, words in classes.items()])"
        raise ValueError(f"{name} is {words!r:.80}; expected a list of words, or a text of words with commas{hint}.")
    return list(words)


def split_negative(vocabulary: Iterable[str | Sequence[str]]) -> tuple[list[str | Sequence[str]], list[str]]:
    """Take the negative words out of what a user wrote: those of entries such as "not: shadow | dark spot".

    Returns:
        the other entries as they are, and the negative words.

    Raises:
        ValueError: an entry "not:" without words.
    """
    classes, negative = [], []
    for entry in vocabulary:
        if not is_negative(entry):
            classes.append(entry)
            continue

        first, *others = [entry] if isinstance(entry, str) else entry
        words = strip_all([_NEGATIVE.sub("", first, count=1), *others])
        if not words:
            raise ValueError(f"'{first}' names no negative word: write it as 'not: shadow', or 'not: shadow | tree'.")
        negative += words
    return classes, negative


def is_negative(entry: str | Sequence[str]) -> bool:
    """Return whether an entry of a vocabulary is of negative words, see split_negative."""
    if isinstance(entry, (list, tuple)) and entry:
        entry = entry[0]
    return isinstance(entry, str) and _NEGATIVE.match(entry) is not None


def negative_name(negative: Sequence[str]) -> str:
    """Return the name of what negative words take, as a user writes them: "not: shadow | tree"."""
    return f"not: {' | '.join(negative)}"


def as_vocabulary(class_words: Iterable[Sequence[str]]) -> list[str | list[str]]:
    """Return classes as a vocabulary has them: a class of one word is that word, any other one a list."""
    return [words[0] if len(words) == 1 else list(words) for words in class_words]


def as_lists(vocabulary: Iterable[str | Sequence[str]]) -> list[list[str]]:
    """Return the list of the words of each class of a vocabulary."""
    return [[words] if isinstance(words, str) else list(words) for words in vocabulary]


def class_names(vocabulary: Iterable[str | Sequence[str]]) -> list[str]:
    """Return the names of a vocabulary's classes: the first word of each."""
    return [words[0] for words in as_lists(vocabulary)]


def result_names(
    vocabulary: Iterable[str | Sequence[str]],
    background: bool = False,
    negative: Sequence[str] = (),
    has_filler_words: bool = False,
) -> list[str]:
    """Return the names of what a pixel of a segmentation may be, in the order of the labels.

    Args:
        vocabulary: the word or the words of each class.
        background: whether there is one, which comes first.
        negative: negative words, which come last.
        has_filler_words: whether there are words of no class, which come last where there is no background.
    """
    names = class_names(vocabulary)
    if background:
        names = [BACKGROUND, *names]
    if negative:
        return [*names, negative_name(negative)]
    return [*names, NO_CLASS] if has_filler_words and not background else names


def unique_names(class_words: Sequence[Sequence[str]]) -> list[str]:
    """Return names of classes of which several may have the same first word: "bag", "bag (handbag)"."""
    count = Counter(words[0] for words in class_words)
    return [f"{words[0]} ({words[1]})" if count[words[0]] > 1 and len(words) > 1 else words[0] for words in class_words]


def strip_all(words: Iterable[str]) -> list[str]:
    """Return words without spaces around them, and without blank ones."""
    return [word.strip() for word in words if word.strip()]
