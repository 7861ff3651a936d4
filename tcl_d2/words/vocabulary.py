"""The vocabulary of a segmentation: classes, each of one or more words, and what is no class."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .datasets import Category, dataset_background, dataset_categories, dataset_class_names, dataset_metadata
from .parsing import as_lists, as_vocabulary, check_word, is_negative, list_words
from .words import read_background

ClassWords = str | Sequence[str]  # the word of a class, or its words
Identify = Callable[[Sequence[str]], Sequence[Hashable]]  # gives equal keys for words that are one text for the model


class Vocabulary(NamedTuple):
    """Words, and the class of each.

    Attributes:
        words: W texts. A word of the background may be a class's word too.
        classes: index of the class of each word, in 0..num_classes; num_classes where a word belongs to no class, as
            negative words do.
        num_classes: number of classes, with the background.
        background: whether class 0 is the background, which has a constant score besides its words, if any.
        categories: of each class but the background; None where all are things, in their order.
        dataset_name: whose classes these are; None for a user's.
    """

    words: tuple[str, ...]
    classes: tuple[int, ...]
    num_classes: int
    background: bool
    categories: tuple[Category, ...] | None = None
    dataset_name: str | None = None


class WordSubset(NamedTuple):
    """The vocabulary of one dataset, by indices among the words that scores are made for.

    Attributes:
        words: int64 [n]; a word that stands twice in a dataset has the same index twice.
        classes: int64 [n], the class of each, see Vocabulary.
        num_classes: see Vocabulary.
        background: see Vocabulary.
        categories: see Vocabulary.
        dataset_name: see Vocabulary.
    """

    words: Tensor
    classes: Tensor
    num_classes: int
    background: bool
    categories: tuple[Category, ...] | None = None
    dataset_name: str | None = None

    def split(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Find the subset's words among those from `first` on, `count` in number.

        Returns:
            two tensors int64 [k]: their places among the `count`, and their classes.
        """
        positions = torch.nonzero((self.words >= first) & (self.words < first + count))[:, 0]
        return self.words[positions] - first, self.classes[positions]

    def categories_by_class(self) -> dict[int, Category]:
        """Return the category of each class, by its index; the background has none."""
        classes = range(int(self.background), self.num_classes)
        return dict(zip(classes, self.categories or map(Category, range(len(classes)))))


def make_vocabulary(
    classes: Sequence[ClassWords],
    background: bool | Sequence[str] = False,
    shared_words: bool = False,
    negative: Sequence[str] = (),
    identify: Identify = tuple,
) -> Vocabulary:
    """Make a vocabulary; for a model, by its own `make_vocabulary`.

    Args:
        classes: the word or the words of each class, without the background.
        background: whether there is one, as class 0; or its words.
        shared_words: whether a word may stand for several classes. Their scores are the same; labels then are those of
            the first.
        negative: words that take pixels away: those that they fit best are of no class, with a background too.
        identify: says which words are one text for the model; by default, those that are equal. A class may have
            several words of one text.

    Raises:
        ValueError: no classes, a class without words, a word that is no text or blank, or that stands for two classes,
            or a negative word that is asked for too.
    """
    background = read_background(background)
    has_background = background is not False
    words_by_class = _list_words(classes, shared_words)
    if has_background:
        words_by_class.insert(0, () if background is True else check_words(background))
    pairs = [(word, i) for i, words in enumerate(words_by_class) for word in words]
    negative = check_words(negative) if negative else ()

    # Words that are one text for the model
    all_words = list(dict.fromkeys([*(word for word, _ in pairs), *negative]))
    texts = dict(zip(all_words, identify(all_words)))
    if not shared_words:
        _check_texts(words_by_class[int(has_background) :], texts)
    _check_negative(negative, [word for word, _ in pairs], texts)

    pairs += [(word, len(words_by_class)) for word in negative]
    words, class_indices = zip(*pairs)
    return Vocabulary(words, class_indices, len(words_by_class), has_background)


def _list_words(classes: Sequence[ClassWords], shared_words: bool) -> list[tuple[str, ...]]:
    """Return the words of each class, checked."""
    if isinstance(classes, str) or not classes:
        raise ValueError(f"A vocabulary is a list of at least one class word, not {classes!r}.")
    lists = [tuple(entry) if isinstance(entry, (list, tuple)) else (entry,) for entry in classes]
    words_by_class = cast(list[tuple[str, ...]], lists)
    if () in words_by_class:
        index = words_by_class.index(())
        raise ValueError(f"Class {index} of the vocabulary has an empty list of words; give it one at least.")

    distinct = words_by_class if shared_words else [list(chain.from_iterable(words_by_class))]
    for words in distinct:
        check_words(words)
    return words_by_class


def _check_texts(words_by_class: Sequence[Sequence[str]], texts: Mapping[str, Hashable]) -> None:
    """Raise a ValueError if words of two classes are one text for the model: the second class would get no pixel."""
    owners: dict[Hashable, tuple[int, str]] = {}
    for index, words in enumerate(words_by_class):
        for word in words:
            owner, other = owners.setdefault(texts[word], (index, word))
            if owner != index:
                raise ValueError(
                    f"'{other}' and '{word}' stand for two classes, but are one text for the model, which ignores "
                    "case, repeated spaces and whatever exceeds its context: give the classes different words, or make "
                    "them one class."
                )


def _check_negative(negative: Sequence[str], asked_words: Sequence[str], texts: Mapping[str, Hashable]) -> None:
    asked = {texts[word]: word for word in asked_words}
    both = sorted(word for word in negative if texts[word] in asked)
    if both:
        word, other = both[0], asked[texts[both[0]]]
        written = "" if word == other else f", written '{other}'"
        raise ValueError(
            f"'{word}' is a negative word, and is asked for too{written}, as a word of a class or of the background: "
            "take it out of one of them."
        )


def dataset_classes(
    dataset_name: str, class_words: Sequence[ClassWords] | None = None
) -> tuple[Sequence[ClassWords], bool | list[str]]:
    """Return the classes of a registered dataset as make_vocabulary takes them: its classes, and its background.

    Args:
        dataset_name: name in the catalog.
        class_words: words of its classes, in place of its metadata's `class_words` or their names. With as many
            entries as classes, those of a background are its words; with one less, it has none.

    Raises:
        ValueError: another number of entries.
    """
    metadata = dataset_metadata(dataset_name)
    background = dataset_background(dataset_name)
    names = dataset_class_names(dataset_name)
    num_classes = len(names)
    given = class_words or metadata.get("class_words") or names[int(bool(background)) :]
    class_words = list_words("class_words", given)

    # The background's words, if any, come first
    num_words = len(class_words)
    if background and num_words == num_classes:
        first = class_words.pop(0)
        background = [first] if isinstance(first, str) else list(first) or True
    if len(class_words) != num_classes - int(background is not False):
        raise ValueError(
            f"Dataset '{dataset_name}' has {num_classes} classes, but there are words for {num_words}: give an entry "
            "for each class; that of the background may be left out."
        )
    return class_words, background


def dataset_vocabulary(
    dataset_name: str,
    class_words: Sequence[ClassWords] | None = None,
    identify: Identify = tuple,
) -> Vocabulary:
    """Make the vocabulary of a registered dataset; arguments and errors as dataset_classes and make_vocabulary."""
    classes, background = dataset_classes(dataset_name, class_words)
    shared_words = dataset_metadata(dataset_name).get("shared_words", False)
    vocabulary = make_vocabulary(classes, background, shared_words, identify=identify)
    return vocabulary._replace(categories=dataset_categories(dataset_name), dataset_name=dataset_name)


def leave_to_first(classes: Sequence[ClassWords]) -> Sequence[ClassWords]:
    """Leave each word to the first class that has it, and leave out classes that have none then; labels stay the same.

    Args:
        classes: the word or the words of each class, see make_vocabulary's `shared_words`.
    """
    taken, remaining = set(), []
    for words in as_lists(classes):
        remaining.append([word for word in words if word not in taken])
        taken.update(words)
    return as_vocabulary(words for words in remaining if words)


def check_words(words: Sequence[str]) -> tuple[str, ...]:
    """Return words as a tuple.

    Raises:
        ValueError: no words, a word that is no text or blank, a negative word, a word that stands twice, or see
            check_word.
    """
    if isinstance(words, str) or not words:
        raise ValueError(f"A vocabulary is a list of at least one class word, not {words!r}.")

    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"A vocabulary's words must be texts that are not blank; found {word!r}.")
        check_word(word)
        if is_negative(word):
            raise ValueError(f"'{word}' stands among other words; negative words are an entry of their own.")

    twice = sorted(word for word, count in Counter(words).items() if count > 1)
    if twice:
        raise ValueError(f"A vocabulary names each class once; these stand twice: {', '.join(twice[:5])}.")
    return tuple(words)


def join_vocabularies(vocabularies: Sequence[Vocabulary]) -> tuple[list[str], list[WordSubset]]:
    """Join vocabularies, so that scores are made for each of their words once.

    Returns:
        the different words, and each vocabulary by their indices.
    """
    indices: dict[str, int] = {}
    subsets = []
    for vocabulary in vocabularies:
        words = torch.tensor([indices.setdefault(word, len(indices)) for word in vocabulary.words])
        classes = torch.tensor(vocabulary.classes)
        subsets.append(WordSubset(words, classes, *vocabulary[2:]))
    return list(indices), subsets
