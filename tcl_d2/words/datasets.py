"""The classes of registered datasets: of semantic segmentation, of instances, and of panoptic segments."""

from typing import TYPE_CHECKING, NamedTuple

from .parsing import BACKGROUND
from .words import read_background

if TYPE_CHECKING:
    from detectron2.data import Metadata

# Types of Detectron2's datasets by their evaluator_type: with instances of things, and with things and stuff
INSTANCE_TYPES = ("coco", "lvis")
PANOPTIC_TYPES = ("coco_panoptic_seg",)


class Category(NamedTuple):
    """What a class is to Detectron2.

    Attributes:
        index: among a dataset's things (`thing_classes`) or its stuff (`stuff_classes`).
        is_thing: whether it is made of objects.
    """

    index: int
    is_thing: bool = True


def dataset_metadata(dataset_name: str) -> "Metadata":
    """Return a registered dataset's metadata.

    Detectron2's catalogs are imported when they are first used: with them this project's datasets are registered, which
    needs this package.
    """
    from detectron2.data import MetadataCatalog

    return MetadataCatalog.get(dataset_name)


def has_classes(dataset_name: str) -> bool:
    """Return whether a registered dataset has classes to look for: `stuff_classes`, or those of its objects."""
    return "stuff_classes" in dataset_metadata(dataset_name).as_dict() or is_of_objects(dataset_name)


def is_of_objects(dataset_name: str) -> bool:
    """Return whether a registered dataset is one of instances, or of panoptic segments."""
    return dataset_metadata(dataset_name).get("evaluator_type") in INSTANCE_TYPES + PANOPTIC_TYPES


def dataset_class_names(dataset_name: str) -> list[str]:
    """Return the names of a registered dataset's classes, the background first where there is one."""
    if not is_of_objects(dataset_name):
        return list(dataset_metadata(dataset_name).stuff_classes)
    background = [BACKGROUND] if dataset_background(dataset_name) is not False else []
    return background + [name for name, _ in _object_classes(dataset_name)]


def dataset_background(dataset_name: str) -> bool | list[str]:
    """Return whether a registered dataset has a background, or its words.

    By default, instances have one, for what is around them is of no class.
    """
    metadata = dataset_metadata(dataset_name)
    return read_background(metadata.get("background", metadata.get("evaluator_type") in INSTANCE_TYPES))


def dataset_categories(dataset_name: str) -> tuple[Category, ...] | None:
    """Return the category of each class of a dataset of objects, without the background; None for another dataset."""
    if not is_of_objects(dataset_name):
        return None
    return tuple(category for _, category in _object_classes(dataset_name))


def _object_classes(dataset_name: str) -> list[tuple[str, Category]]:
    """Return the name and category of each class of a dataset of objects; LVIS has words such as "beer_bottle"."""
    metadata = dataset_metadata(dataset_name)
    if "thing_classes" not in metadata.as_dict():
        from detectron2.data import DatasetCatalog

        DatasetCatalog.get(dataset_name)  # Detectron2's own read them from the file of annotations
    things = [(name.replace("_", " "), Category(index)) for index, name in enumerate(metadata.thing_classes)]
    if metadata.evaluator_type in INSTANCE_TYPES:
        return things

    # Either both lists have all classes, or the first of the stuff stands for all things
    thing_indices = metadata.thing_dataset_id_to_contiguous_id.values()
    stuff = [(name, Category(index, is_thing=False)) for index, name in enumerate(metadata.stuff_classes)]
    if list(metadata.stuff_classes) == list(metadata.thing_classes):
        return [things[index] if index in thing_indices else stuff[index] for index in range(len(stuff))]
    return things + stuff[1:]
