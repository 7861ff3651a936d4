"""Specificity: a class by its first word, with its synonyms, or merged into its parent ("dog | puppy < animal")."""

from collections.abc import Sequence
from typing import cast

from ..utils.errors import expect
from .parsing import as_vocabulary, is_negative, list_words, split_words, strip_all

SPECIFICITIES = ("word", "synonyms", "parents")  # from specific to general


def at_specificity(
    classes: str | Sequence[str | Sequence[str]], specificity: str = "synonyms"
) -> list[str | Sequence[str]]:
    """Return classes without parents; entries of negative words stay as they are.

    Args:
        classes: the word or the words of each class, and behind "<" those of its parent; or one text, see split_words.
        specificity: "word": the first word of each class. "synonyms": all its words, of which a pixel has the best
            score. "parents": one class for each parent, with its words and those of its classes.

    Raises:
        ValueError: classes of another type, another specificity, or a "<" that is not between the words of a class and
            those of its parent.
    """
    expect(specificity in SPECIFICITIES, "specificity", f"'{specificity}'", f"one of {', '.join(SPECIFICITIES)}")
    entries = split_words(classes) if isinstance(classes, str) else list_words("classes", classes)
    negative = [entry for entry in entries if is_negative(entry)]
    for entry in negative:
        if _split_parents(entry)[1]:
            raise ValueError(f"{entry!r} are negative words, which have no parent: leave out what is behind the '<'.")
    families = [_split_parents(entry) for entry in entries if not is_negative(entry)]

    if specificity == "parents":
        class_words = _merge_families(families)
    else:
        count = 1 if specificity == "word" else None
        class_words = [words[:count] for words, _ in families]
    return [*as_vocabulary(class_words), *negative]


def _split_parents(entry: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a class, and those of its parent, if it has one."""
    words = cast(list[str], list(entry) if isinstance(entry, (list, tuple)) else [entry])
    if not any(isinstance(word, str) and "<" in word for word in words):
        return words, []

    text = " | ".join(words)
    parts = [strip_all(part.split("|")) for part in text.split("<")]
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"'{text}' is not a class and its parent: write them as 'dog | puppy < animal'.")
    return parts[0], parts[1]


def _merge_families(families: Sequence[tuple[list[str], list[str]]]) -> list[list[str]]:
    """Merge classes with the same parent, and the parent where it is a class itself, in the place of the first."""
    merged, by_parent = [], {parents[0]: [] for _, parents in families if parents}
    for words, parents in families:
        family = by_parent.get((parents or words or [""])[0])
        if family is None:
            merged.append(words)
            continue

        if not family:
            merged.append(family)
        family += [word for word in (*parents, *words) if word not in family]
    return merged
