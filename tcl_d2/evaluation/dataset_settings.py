"""Settings and words of single datasets, and their checks before an evaluation begins."""

from collections.abc import Iterable
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from ..config.loading import dataset_config
from ..config.ranges import check_ranges
from ..data.dataset_files import subsample
from ..modeling.encoders.text import WordReader
from ..segmentation.region_files import check_region_files
from ..utils.errors import expect, named
from ..words.datasets import PANOPTIC_TYPES, has_classes, is_of_objects
from ..words.files import RELEASES, read_dataset_words, released_words
from ..words.parsing import as_lists
from ..words.templates import get_templates
from ..words.vocabulary import Identify, dataset_classes, dataset_vocabulary
from .measures import build_measures, check_measures
from .objects import check_panoptic

FIRST_WORDS = "first"  # in TEST.ZERO_SHOT.WORDS: the first word of each class alone


def words_from_config(cfg: CfgNode, dataset_name: str) -> list[list[str]] | None:
    """Return the words of a dataset's classes that TEST.ZERO_SHOT.WORDS names; None for the dataset's own."""
    words = cfg.TEST.ZERO_SHOT.WORDS
    if not words:
        return None
    if words == FIRST_WORDS:
        return [class_words[:1] for class_words in as_lists(dataset_classes(dataset_name)[0])]
    if words not in RELEASES:
        try:
            return read_dataset_words(words, dataset_name)
        except OSError as error:
            raise type(error)(
                f"TEST.ZERO_SHOT.WORDS is '{words}', which is not '{FIRST_WORDS}', no release ({', '.join(RELEASES)}) "
                f"and no file that can be read: {error.strerror or error}"
            ) from None

    lists = released_words(words)
    if dataset_name not in lists:
        raise ValueError(
            f"TEST.ZERO_SHOT.WORDS is '{words}', whose release has no words for '{dataset_name}', but for "
            f"{', '.join(lists)}. Give a file of words, or '' for the dataset's own."
        )
    return lists[dataset_name]


def check_dataset_settings(cfg: CfgNode, dataset_names: Iterable[str]) -> None:
    """Check the settings and words of each dataset; ValueError or OSError names the dataset and the problem."""
    unknown = sorted(set(cfg.TEST.ZERO_SHOT.BY_DATASET) - set(DatasetCatalog.list()))
    expect(not unknown, "TEST.ZERO_SHOT.BY_DATASET", f"for {', '.join(unknown)}", "names of registered datasets")
    reader = build_reader(cfg)
    for name in dataset_names:
        if name not in DatasetCatalog.list():
            continue
        # Other checks name datasets that are no benchmarks
        is_known = {"stuff_classes", "thing_classes"} & MetadataCatalog.get(name).as_dict().keys()
        if has_classes(name) and is_known:
            _check_settings(dataset_config(cfg, name), name, reader)


def _check_settings(cfg: CfgNode, dataset_name: str, reader: WordReader | None) -> None:
    """Check sizes, protocol, words and measures of a dataset, whose settings are in `cfg`."""
    with named(f"Dataset '{dataset_name}'"):
        check_ranges(cfg, "INPUT.", "TEST.")
        META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).protocol_from_config(cfg)
        dataset_vocabulary(dataset_name, words_from_config(cfg, dataset_name), make_identify(cfg, reader))
        if cfg.TEST.ZERO_SHOT.REGIONS.FOLDER:
            _check_regions(cfg, dataset_name)

        # Measures
        check_measures(cfg)
        if not is_of_objects(dataset_name):
            build_measures(cfg, dataset_name)
        elif MetadataCatalog.get(dataset_name).evaluator_type in PANOPTIC_TYPES:
            check_panoptic(cfg, dataset_name)


def _check_regions(cfg: CfgNode, dataset_name: str) -> None:
    try:
        images = subsample(DatasetCatalog.get(dataset_name), cfg.TEST.ZERO_SHOT.MAX_IMAGES)
    except OSError:  # which check_datasets says
        return
    check_region_files(cfg.TEST.ZERO_SHOT.REGIONS.FOLDER, (row["file_name"] for row in images))


def build_reader(cfg: CfgNode) -> WordReader | None:
    """Build what reads words as the model does, without building the model; None where its files cannot be had."""
    try:
        return WordReader(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).build_tokenizer(cfg))
    except (OSError, ValueError):  # which check_encoder says
        return None


def make_identify(cfg: CfgNode, reader: WordReader | None) -> Identify:
    """Return a function that tells which words are one text for the model, with the templates of `cfg`."""
    return partial(reader.identify, templates=get_templates(cfg.TEST.ZERO_SHOT.TEMPLATES)) if reader else tuple
