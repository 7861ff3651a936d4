"""Data: image-text pairs to train on, benchmarks to evaluate on, and the small world."""

from collections.abc import Iterable

from detectron2.data import DatasetCatalog, MetadataCatalog

from . import benchmarks, image_text
from .benchmark_mapper import BenchmarkMapper
from .benchmarks import register_benchmark, register_benchmark_folder
from .image_text import register_caption_list, register_coco_captions, register_webdataset
from .loader import build_image_text_train_loader
from .mapper import ImageTextDatasetMapper

__all__ = [
    "BenchmarkMapper",
    "ImageTextDatasetMapper",
    "build_image_text_train_loader",
    "check_datasets",
    "register_benchmark",
    "register_caption_list",
    "register_coco_captions",
    "register_benchmark_folder",
    "register_webdataset",
]
_USES = {
    image_text.EVALUATOR_TYPE: "DATASETS.TRAIN takes image-text pairs (see register_caption_list)",
    benchmarks.EVALUATOR_TYPE: "DATASETS.TEST and DATASETS.VAL take benchmarks (see register_benchmark)",
}


def check_datasets(names: Iterable[str] = (), *, train: Iterable[str] = (), test: Iterable[str] = ()) -> None:
    """Look for the files of all data sets at once, before anything costly is built.

    A name that is no data set's but a path (has a slash) is registered as a benchmark first: see
    register_benchmark_folder.

    Args:
        names: data sets for either use.
        train: those to train on, as DATASETS.TRAIN: image-text pairs.
        test: those to evaluate on, as DATASETS.TEST and DATASETS.VAL: benchmarks.

    Raises:
        FileNotFoundError: says of every data set that is missing or unfit where it was looked for and how to get it, or
            that it is not for this use.
    """
    names_by_use = {None: names, image_text.EVALUATOR_TYPE: train, benchmarks.EVALUATOR_TYPE: test}
    problems = []
    for use, names_of_use in names_by_use.items():
        for name in names_of_use:
            try:
                _check_dataset(name, use)
            except (OSError, ValueError) as error:
                problems.append(str(error))
    if problems:
        raise FileNotFoundError("\n  ".join(problems))


def _check_dataset(name: str, use: str | None) -> None:
    """Look for the files of one data set; OSError or ValueError. `use` is the evaluator_type it must have, or None."""
    if "/" in name and name not in DatasetCatalog.list() and use != image_text.EVALUATOR_TYPE:
        register_benchmark_folder(name)
    if name not in DatasetCatalog.list():
        raise ValueError(f"Data set '{name}' is not registered. Known ones of this kind: {_known(name)}.")

    # A catalog entry of the user's that is not marked may be pairs to train on, but is no benchmark.
    evaluator_type = MetadataCatalog.get(name).get("evaluator_type", image_text.EVALUATOR_TYPE)
    if use not in (None, evaluator_type):
        raise ValueError(f"Data set '{name}' is of the wrong kind: {_USES[use]}.")

    DatasetCatalog.get(name)


def _known(name: str) -> str:
    alike = [known for known in DatasetCatalog.list() if known.split("_")[0] == name.split("_")[0]]
    return ", ".join(alike or ["cc3m_train", "cc12m_train", "coco_captions_train2017", "shapes_train", "shapes_val"])
