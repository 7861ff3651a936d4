"""Annotation files of objects, in the JSON formats of COCO, LVIS and COCO's panoptic segmentation."""

import json
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..modeling.dataset_classes import PANOPTIC_TYPES
from ..utils.downloads import PathManager

# What Detectron2's evaluator reads of each entry, by the type of dataset and the list
_KEYS = {
    "coco": {
        "images": ("id", "file_name", "height", "width"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
    },
    "lvis": {
        "images": ("id", "coco_url", "height", "width", "neg_category_ids", "not_exhaustive_category_ids"),
        "categories": ("id", "name", "frequency"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    },
    "coco_panoptic_seg": {
        "images": ("id", "file_name"),
        "categories": ("id", "name", "isthing"),
        "annotations": ("image_id", "file_name", "segments_info"),
    },
}


def check_annotations(dataset_name: str) -> None:
    """Check that a dataset of objects has annotations that Detectron2 can read.

    There may be images without objects, and, in COCO's format, no annotations at all, as for a test set.

    Args:
        dataset_name: name in the catalog, of one of Detectron2's types of objects.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, has no images or no categories, or an entry lacks what its type needs, such as a
            category without a name; names the file and the entry.
    """
    # Find the file
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("panoptic_json" if metadata.evaluator_type in PANOPTIC_TYPES else "json_file")
    if path is None:
        return  # Detectron2 writes one from the dataset's rows

    # Read it
    local_path = PathManager.get_local_path(str(path))
    if not Path(local_path).is_file():
        hint = f". To prepare it: {metadata.prepare}" if "prepare" in metadata.as_dict() else ""
        raise FileNotFoundError(f"Dataset '{dataset_name}': no file {local_path}{hint}")
    try:
        content = json.loads(Path(local_path).read_bytes())
    except ValueError as error:
        raise ValueError(f"Dataset '{dataset_name}': {local_path} is no JSON ({error})") from None

    # Look at its lists
    for name, keys in _KEYS[metadata.evaluator_type].items():
        if (metadata.evaluator_type, name) == ("coco", "annotations") and name not in content:
            continue  # a test set, of which Detectron2 writes the results alone
        entries = content.get(name) if isinstance(content, dict) else None
        try:
            _check_entries(entries, name, keys)
        except ValueError as error:
            raise ValueError(f"Dataset '{dataset_name}': {local_path} {error}; expected {', '.join(keys)}") from None


def _check_entries(entries: object, name: str, keys: tuple[str, ...]) -> None:
    """Check that each entry of a list has these keys; only annotations may be an empty list."""
    if not isinstance(entries, list) or (not entries and name != "annotations"):
        raise ValueError(f"has no list '{name}', or an empty one")
    for number, entry in enumerate(entries):
        lacking = [key for key in keys if not isinstance(entry, dict) or entry.get(key) in (None, "")]
        if lacking:
            raise ValueError(f"has no '{lacking[0]}' in entry {number} of '{name}'")
