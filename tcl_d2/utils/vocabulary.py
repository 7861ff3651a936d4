"""What users ask for, read and checked at one place: classes, the words of the background, and negative words.

The predictor, a model's `set_vocabulary` and inputs, exports and exported models all read these arguments here. Empty
words ("", [], ()) and None are no words given: there is no background by them, and nothing negative.
"""

from collections.abc import Sequence

import numpy as np

from .specificity import at_specificity
from .words import BACKGROUND, as_lists, list_words, split_negative


def read_vocabulary(
    classes: str | Sequence[str | Sequence[str]],
    background: bool | str | Sequence[str] | None = False,
    negative: str | Sequence[str] | None = (),
) -> tuple[list[str | list[str]], bool | list[str], list[str]]:
    """Read the classes, the background and the negative words of a request; see TCLPredictor.__call__.

    Returns:
        the word or the list of words of each class; whether there is a background, or its words; negative words. Read
        again, they stay the same.

    Raises:
        ValueError: an argument of another type, which is named; "background" among the class words, with a background
            besides; or see at_specificity, split_negative.
    """
    background = read_background(background)
    vocabulary, written_negative = split_negative(at_specificity(classes))
    if background is not False and any(BACKGROUND in words for words in as_lists(vocabulary)):
        raise ValueError(
            f"'{BACKGROUND}' is one of the class words, and the background comes before them as a class of that name: "
            "leave the word out, or go without the background."
        )
    negative = [] if negative is None else list_words("negative", negative)
    return vocabulary, background, [*negative, *written_negative]


def read_background(background: bool | str | Sequence[str] | None) -> bool | list[str]:
    """Return whether there is a background, or its words; ValueError for another type."""
    if background is None or isinstance(background, (bool, np.bool_)):
        return bool(background)
    return list_words("background", background) or False
