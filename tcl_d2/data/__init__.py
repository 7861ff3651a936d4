"""Data: image-text pairs to train on, benchmarks to evaluate on, and the small world."""

from collections.abc import Iterable

from detectron2.data import DatasetCatalog

from .benchmark_mapper import BenchmarkMapper
from .benchmarks import register_benchmark, register_folder
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
    "register_folder",
    "register_webdataset",
]


def check_datasets(names: Iterable[str]) -> None:
    """Looks for the files of all data sets at once, before anything costly is built.

    A name that is no data set's but a path (has a slash) is registered as a benchmark first: see register_folder.

    Raises:
        FileNotFoundError: says of every data set that is missing or unfit where it was looked for and how to get it.
    """
    problems = []
    for name in names:
        try:
            if "/" in name and name not in DatasetCatalog.list():
                register_folder(name)
            DatasetCatalog.get(name)
        except KeyError:
            problems.append(f"Data set '{name}' is not registered. Known ones of this kind: {_known(name)}.")
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise FileNotFoundError("\n  ".join(problems))


def _known(name: str) -> str:
    alike = [known for known in DatasetCatalog.list() if known.split("_")[0] == name.split("_")[0]]
    return ", ".join(alike or ["cc3m_train", "cc12m_train", "coco_captions_train2017", "shapes_train", "shapes_val"])
