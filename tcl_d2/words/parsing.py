"""Words as users write them.

A class is a word (str) or a list of words, the first of which is its name. Users write negative words ("not: shadow",
see split_negative) and parents ("dog < animal", see utils.specificity) among the classes. A word may bring prompt
templates of its own ("lawn @ itap of a {}.", see split_templates).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

BACKGROUND = "background"  # the name of that class
NO_CLASS = "(no class)"  # the name of pixels that belong to none
MAX_WORD_LENGTH = 500  # characters; the 77 tokens of CLIP's context are some 400 of English
_TEMPLATE = "@"  # what comes before each template of a word's own
_NEGATIVE = re.compile(r"\s*not\s*:", re.IGNORECASE)  # how an entry of negative words begins


def split_words(text: str) -> list[str | list[str]]:
    """Return the classes of a text such as "person | man, grass": commas separate classes, bars a class's words."""
    classes = [strip_all(part.split("|")) for part in text.split(",")]
    return as_vocabulary(words for words in classes if words)


def split_background_words(text: str) -> list[str]:
    """Return the words of a text such as "sky, wall | tree": commas and bars separate them alike."""
    return strip_all(re.split("[,|]", text))


def list_words(name: str, words: str | Iterable) -> list:
    """Return a text (see split_background_words) or any sequence of words as a list.

    Raises:
        ValueError: neither, such as a dict or a set, which has no order; says `name`, that of the argument.
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
    """Return the entries that name classes, and the words of those like "not: shadow | dark spot".

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
    if isinstance(entry, (list, tuple)) and entry:
        entry = entry[0]
    return isinstance(entry, str) and _NEGATIVE.match(entry) is not None


def as_vocabulary(class_words: Iterable[Sequence[str]]) -> list[str | list[str]]:
    """Unpack the lists that have a single word."""
    return [words[0] if len(words) == 1 else list(words) for words in class_words]


def as_lists(vocabulary: Iterable[str | Sequence[str]]) -> list[list[str]]:
    return [[words] if isinstance(words, str) else list(words) for words in vocabulary]


def class_names(vocabulary: Iterable[str | Sequence[str]]) -> list[str]:
    return [without_templates(words[0]) for words in as_lists(vocabulary)]


def unique_names(class_words: Sequence[Sequence[str]]) -> list[str]:
    """Return the first word of each class, with the second where the first is not unique: "bag (handbag)"."""
    class_words = [[*map(without_templates, words)] for words in class_words]
    count = Counter(words[0] for words in class_words)
    return [f"{words[0]} ({words[1]})" if count[words[0]] > 1 and len(words) > 1 else words[0] for words in class_words]


def split_templates(word: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a word such as "lawn @ itap of a {}. @ art of the {}.", and the templates of its own.

    A word without templates stays as it is: an @ that no template follows is part of the text.
    """
    text, *templates = word.split(_TEMPLATE)
    if not any("{}" in template for template in templates):
        return word, ()
    return text.strip(), tuple(template.strip() for template in templates)


def without_templates(word: str) -> str:
    return split_templates(word)[0]


def join_templates(text: str, templates: Iterable[str]) -> str:
    """Return a word with templates of its own, as split_templates reads it; ValueError for one that it could not."""
    return check_word(f" {_TEMPLATE} ".join([text, *templates]))


def strip_all(words: Iterable[str]) -> list[str]:
    """Strip, decode and check words; drop blank ones."""
    stripped = (word.strip() for word in words)
    return [check_word(decode_argument(word)) for word in stripped if word]


def decode_argument(text: str) -> str:
    """Decode UTF-8 that Python read as surrogates from a command line under another locale, such as LANG=C."""
    with suppress(UnicodeEncodeError):  # other surrogates, which no command line has
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return text


def check_word(word: str) -> str:
    """Return a word; ValueError if it is not UTF-8, too long (MAX_WORD_LENGTH), or has wrong templates of its own."""
    text, templates = split_templates(word)
    if max(map(len, (text, *templates))) > MAX_WORD_LENGTH:
        raise ValueError(
            f"The word '{word[:30]}...' has {len(word):,} characters; at most {MAX_WORD_LENGTH} are read, and "
            "CLIP's context of 77 tokens holds fewer: shorten it, or separate words with commas."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in word):
        raise ValueError(f"The word {word[:30]!r} is not UTF-8: write it, or save its file, as UTF-8.")
    if not text or any(template.count("{}") != 1 for template in templates):
        raise ValueError(
            f"The word '{word[:100]}' has prompt templates of its own, but not as they are written: a word, and behind "
            "each @ a template with the place '{}' exactly once, such as 'lawn @ itap of a {}. @ art of the {}.'."
        )
    return word
