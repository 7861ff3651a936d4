"""Words of classes, in files or as a method's release has them: each class has one or several."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..assets import FOLDER as ASSETS
from ..utils.downloads import PathManager
from .datasets import dataset_background, dataset_class_names, dataset_metadata, is_of_objects
from .parsing import strip_all, without_templates

_FOLDER = ASSETS / "words"
_INDEX = json.loads((_FOLDER / "index.json").read_text(encoding="utf-8"))
_EVERY_METHOD = "every method"  # in the index: the lists that all releases share
_OWN = "own"  # in place of files: the names of the dataset's classes
RELEASES = tuple(name for name in _INDEX if name != _EVERY_METHOD)


class Source(NamedTuple):
    """Where class words come from, for errors.

    Attributes:
        name: a file, or a dataset.
        part: its name for a class, such as "line".
        first: the number of the first class.
    """

    name: str
    part: str = "class"
    first: int = 0

    def place(self, index: int) -> str:
        """Return the place of a class, such as "line 3"."""
        return f"{self.part} {self.first + index}"


# ------------------------------------------------------------------------------------------------- files


def read_class_words(path: str | Path, background: bool = False, shared_words: bool = False) -> list[list[str]]:
    """Read the words of each class from a file with a class a line, its words separated by commas or semicolons.

    A word may bring prompt templates of its own, see split_templates.

    The file is UTF-8, with or without a byte-order mark, at any path that Detectron2's PathManager knows. Blank lines
    at its end are ignored. For the other arguments, see check_class_words.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, names no class, has a line without words, or see check_class_words; names the file
            and the line.
    """
    try:
        text = Path(PathManager.get_local_path(str(path))).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8, a class a line.") from None

    text = text.rstrip()
    if not text:
        raise ValueError(f"{path} names no class: it needs a class a line.")
    class_words = [strip_all(re.split("[,;]", line)) for line in text.split("\n")]
    check_class_words(class_words, Source(str(path), "line", first=1), background, shared_words)
    return class_words


def read_dataset_words(path: str | Path, dataset_name: str) -> list[list[str]]:
    """Read a file of words, as read_class_words, for the classes of a registered dataset: a line each, in their order.

    The line of a background may be left out; then it has no words.

    Raises:
        OSError: the file cannot be read.
        ValueError: see read_class_words and check_fits_classes; names the file and the line.
    """
    names, background = dataset_class_names(dataset_name), dataset_background(dataset_name) is not False
    if background and is_of_objects(dataset_name):  # whose lists of classes are without it
        names, background = names[1:], False
    shared_words = dataset_metadata(dataset_name).get("shared_words", False)
    class_words = read_class_words(path, background, shared_words)
    if background and len(class_words) == len(names) - 1:
        names, background = names[1:], False

    source = Source(f"Words of '{dataset_name}' in {path}", "line", first=1)
    check_fits_classes(class_words, names, source, background, shared_words)
    return class_words


# ------------------------------------------------------------------------------------------------- checks


def check_class_words(
    class_words: Sequence[Sequence[str]], source: Source, background: bool = False, shared_words: bool = False
) -> None:
    """Check that every class has words, and that no word stands twice.

    Args:
        class_words: the words of each class.
        background: whether the first class is the background. Its words stand for whatever is no other class, and may
            be words of classes too: the published lists have "bed" as both.
        shared_words: whether a word may stand for several classes.

    Raises:
        ValueError: a class without words, a blank word, or a word that stands twice.
    """
    index_by_word = {}
    for index, words in enumerate(class_words):
        place = f"{source.name}, {source.place(index)}"
        if not words or not all(word.strip() for word in words):
            raise ValueError(f"{place}: a class without words, or with a blank one. Give its words, or take it out.")

        for word in words:
            if words.count(word) > 1:
                raise ValueError(f"{place}: the word '{word}' stands there twice. Take one out.")
            other = index_by_word.get(word)
            if other is not None and not shared_words and not (background and other == 0):
                raise ValueError(
                    f"{place}: the word '{word}' also stands for {source.place(other)}. Give the classes different "
                    "words, such as 'crane (bird)' and 'crane (machine)'."
                )
            index_by_word[word] = index


def check_fits_classes(
    class_words: Sequence[Sequence[str]],
    names: Sequence[str],
    source: Source,
    background: bool = False,
    shared_words: bool = False,
) -> None:
    """Check that checked words are for the classes with these names, in their order; arguments as check_class_words.

    With shared words, their order cannot be checked.

    Raises:
        ValueError: more or fewer classes than names, or a class has the name of another one among its words.
    """
    if len(class_words) != len(names):
        known = {_without_spaces(word) for words in class_words for word in words}
        missing = [name for name in names if _without_spaces(name) not in known]
        hint = f" Not among the words: {', '.join(missing[:5])}." if missing else ""
        raise ValueError(
            f"{source.name}: words for {len(class_words)} classes, but the dataset has {len(names)}. Give each of its "
            f"classes a {source.part}, in their order.{hint}"
        )
    if shared_words:
        return

    indices = {_without_spaces(name): index for index, name in enumerate(names)}
    for index in range(int(background), len(names)):
        for word in class_words[index]:
            other = indices.get(_without_spaces(word), index)
            if other != index:
                raise ValueError(
                    f"{source.name}, {source.place(index)}: '{word}' is the name of another class, which has "
                    f"{source.place(other)}. The words of '{names[index]}' are expected there."
                )


def _without_spaces(word: str) -> str:
    """Return a word's text without its spaces: releases write 'trafficlight'."""
    return "".join(without_templates(word).split())


# ------------------------------------------------------------------------------------------------- releases


def released_words(method: str) -> dict[str, list[list[str]]]:
    """Return the words of each class with which a method's release was evaluated, by dataset.

    Where a dataset has a background, its words are the first; GroupViT's release has none for it. A ValueError names
    the methods (RELEASES).
    """
    if method not in RELEASES:
        raise ValueError(f"There are no lists of class words for '{method}'; there are for {', '.join(RELEASES)}.")

    # A method has files of its own, or those of another one
    shared, files_by_dataset = _INDEX[_EVERY_METHOD], _INDEX[method]
    if isinstance(files_by_dataset, str):
        files_by_dataset = _INDEX[files_by_dataset]
    return {name: _read_release(name, files) for name, files in {**shared, **files_by_dataset}.items() if files}


def _read_release(dataset_name: str, files: list[str] | str) -> list[list[str]]:
    """Read the words of a dataset's classes from a release's files, or take the names of the classes."""
    if files == _OWN:
        return [[name] for name in dataset_class_names(dataset_name)]
    return [words for file in files for words in read_class_words(_FOLDER / file)]
