"""Words: the classes, background and negative words of a request, read and checked once, passed as one value."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .parsing import BACKGROUND, as_lists, class_names, list_words, split_negative
from .specificity import at_specificity


@dataclass(frozen=True)
class Words:
    """The words of a request, as every part of the package takes them.

    Attributes:
        classes: the word, or the list of words, of each class, without the background.
        background: whether there is a background, as the class before them; or its words.
        negative: words whose pixels belong to no class.
    """

    classes: Sequence[str | Sequence[str]]
    background: bool | list[str] = False
    negative: list[str] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        classes: "Words | str | Sequence[str | Sequence[str]]",
        background: bool | str | Sequence[str] | None = False,
        negative: str | Sequence[str] | None = (),
    ) -> "Words":
        """Read the words of a user, see TCLPredictor.__call__; `Words` stay as they are.

        Raises:
            ValueError: an argument of another type, which is named; "background" is a class besides the background; or
                see at_specificity, split_negative.
        """
        if isinstance(classes, Words):
            return classes
        background = read_background(background)
        classes, written_negative = split_negative(at_specificity(classes))
        if background is not False and any(BACKGROUND in words for words in as_lists(classes)):
            raise ValueError(
                f"'{BACKGROUND}' is one of the class words, and also the name of the background: leave the word out, "
                "or go without the background."
            )
        negative = [] if negative is None else list_words("negative", negative)
        return cls(classes, background, [*negative, *written_negative])

    @property
    def has_background(self) -> bool:
        return self.background is not False

    @property
    def names(self) -> list[str]:
        """The names of all that a pixel may be, in the order of the labels; the last may be "not: shadow | tree"."""
        first = [BACKGROUND] if self.has_background else []
        last = [f"not: {' | '.join(self.negative)}"] if self.negative else []
        return [*first, *class_names(self.classes), *last]

    @property
    def count(self) -> int:
        """The number of words."""
        background = self.background if isinstance(self.background, list) else []
        return sum(map(len, as_lists(self.classes))) + len(background) + len(self.negative)


ClassesLike = Words | str | Sequence[str | Sequence[str]]
BackgroundLike = bool | str | Sequence[str] | None


def read_background(background: BackgroundLike) -> bool | list[str]:
    """Return whether there is a background, or its words; None and no words are no background."""
    if background is None or isinstance(background, (bool, np.bool_)):
        return bool(background)
    return list_words("background", background) or False
