"""Checks of datasets, before anything costly is built."""

from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..words.datasets import has_classes, is_of_objects
from .benchmarks import EVALUATOR_TYPE, find_format, read_annotations, register_label_path
from .labeled.datasets import is_labeled, read_labeled_dataset
from .labels import LabelMapper
from .pairs.register import TRAIN_ONLY_TYPE, register_training_path
from .pairs.shards import is_remote
from .pairs.stream import read_dataset

_USES = {
    TRAIN_ONLY_TYPE: (
        "DATASETS.TRAIN takes image-text pairs (see register_caption_folder) and labeled datasets (see "
        "register_benchmark), whose metadata have stuff_classes and whose rows have a sem_seg_file_name"
    ),
    EVALUATOR_TYPE: (
        "DATASETS.TEST and DATASETS.VAL take benchmarks (see register_benchmark), and other datasets whose metadata "
        "have stuff_classes and an evaluator_type, or objects of the type coco, lvis or coco_panoptic_seg"
    ),
}


def check_datasets(
    names: Iterable[str] = (), *, train: Iterable[str] = (), test: Iterable[str] = (), with_captions: bool = True
) -> None:
    """Look for the files of all datasets at once, before anything costly is built.

    A name that is no dataset's but a path or an address is registered first: see register_label_path, and
    register_training_path for what has no labels.

    Args:
        names: datasets for either use.
        train: datasets to train on, as DATASETS.TRAIN: image-text pairs, and labeled images.
        test: datasets to evaluate on, as DATASETS.TEST and DATASETS.VAL: benchmarks.
        with_captions: whether images of folders to train on must have captions.

    Raises:
        FileNotFoundError: says of every dataset with missing files where it was looked for and how to get it, and what
            is wrong with each of the others.
        ValueError: no file is missing, but datasets are unfit, not registered or not for this use.
    """
    names_by_use = {None: names, TRAIN_ONLY_TYPE: train, EVALUATOR_TYPE: test}
    problems = []
    for use, name in ((use, name) for use, names in names_by_use.items() for name in names):
        try:
            _check_dataset(name, use, with_captions)
        except (OSError, ValueError) as error:
            problems.append(error)

    if problems:
        are_files_missing = any(isinstance(problem, OSError) for problem in problems)
        raise (FileNotFoundError if are_files_missing else ValueError)("\n  ".join(map(str, problems)))


def check_have_labels(names: Iterable[str]) -> None:
    """Raise a ValueError for a dataset of objects, which has no label of each pixel."""
    for name in names:
        if is_of_objects(name):
            raise ValueError(f"Dataset '{name}' has objects and no labels of pixels; expected a benchmark.")


def _check_dataset(name: str, use: str | None, with_captions: bool) -> None:
    """Look for the files of a dataset; OSError or ValueError. `use` is one of _USES, or None for any."""
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is no name of a dataset; expected texts, such as ('shapes_val',)")
    if name not in DatasetCatalog.list() and ("/" in name or is_remote(name) or Path(name).exists()):
        are_labels = use == EVALUATOR_TYPE or find_format(name)
        register_label_path(name) if are_labels else register_training_path(name, with_captions)
    if name not in DatasetCatalog.list():
        raise ValueError(f"Dataset '{name}' is not registered. Registered are, among others: {_similar_names(name)}.")

    # A catalog entry of the user's that is not marked may be pairs to train on, but is no benchmark.
    may_be_pairs = MetadataCatalog.get(name).get("evaluator_type", TRAIN_ONLY_TYPE) == TRAIN_ONLY_TYPE
    is_benchmark = not may_be_pairs and has_classes(name)
    fits = {TRAIN_ONLY_TYPE: may_be_pairs or is_labeled(name), EVALUATOR_TYPE: is_benchmark}
    if use is not None and not fits[use]:
        advice = _advise_labels(name) if use == TRAIN_ONLY_TYPE else ""
        raise ValueError(f"Dataset '{name}' is of the wrong kind: {_USES[use]}.{advice}")

    if is_of_objects(name):
        read_annotations(name)
    elif is_labeled(name):
        LabelMapper.of(name)
    try:
        is_labels = use == TRAIN_ONLY_TYPE and is_labeled(name)
        read_labeled_dataset(name) if is_labels else read_dataset(name)
    except AssertionError as error:  # of Detectron2's own datasets
        raise ValueError(f"Dataset '{name}': {error}") from None


def _advise_labels(name: str) -> str:
    """Return how to train on COCO's instances; "" for other datasets."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco":
        return ""
    json_file, images = metadata.get("json_file") or "FILE.json", metadata.get("image_root") or "FOLDER"
    command = f"tcl-d2 prepare labels {json_file} --images {images} --output my/labeled"
    return f" Draw its instances as labels, and name that folder in its place: {command}"


def _similar_names(name: str) -> str:
    """List registered names that begin like this one, or well-known ones."""
    similar = [known for known in DatasetCatalog.list() if known.split("_")[0] == name.split("_")[0]]
    return ", ".join(similar or ["cc3m_train", "cc12m_train", "coco_captions_train2017", "shapes_train", "shapes_val"])
