"""What a configuration says for single datasets: their words, and a check of it all before an evaluation begins."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..config import dataset_config
from ..data.words import RELEASES, read_dataset_words, released_words


def class_words(cfg: CfgNode, dataset_name: str) -> list[list[str]] | None:
    """Return the words of a dataset's classes that TEST.ZERO_SHOT.WORDS names; None for the dataset's own.

    Raises:
        OSError, ValueError: the file cannot be read or is not for this dataset, or the release has no words for it.
    """
    words = cfg.TEST.ZERO_SHOT.WORDS
    if not words:
        return None
    if words not in RELEASES:
        return read_dataset_words(words, dataset_name)

    lists = released_words(words)
    if dataset_name not in lists:
        raise ValueError(
            f"TEST.ZERO_SHOT.WORDS is '{words}', whose release has no words for '{dataset_name}', but for "
            f"{', '.join(lists)}. Give a file of words, or '' for the dataset's own."
        )
    return lists[dataset_name]


def check_dataset_settings(cfg: CfgNode, dataset_names: Iterable[str]) -> None:
    """Check the settings and words of each dataset; ValueError or OSError names what does not fit."""
    unknown = set(cfg.TEST.ZERO_SHOT.BY_DATASET) - set(DatasetCatalog.list())
    if unknown:
        raise ValueError(
            f"TEST.ZERO_SHOT.BY_DATASET names datasets that are not registered: {', '.join(sorted(unknown))}"
        )
    for name in dataset_names:
        if name in DatasetCatalog.list():  # what is not is another check's error
            class_words(dataset_config(cfg, name), name)
