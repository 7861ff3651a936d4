"""Reading and drawing annotations of objects, in the JSON formats of COCO, LVIS and COCO's panoptic segmentation.

Libraries find malformed annotations late, with an error that names nothing, or crash on them. So the whole file is
checked before a picture is read.
"""

import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.data.detection_utils import check_image_size
from detectron2.utils.logger import log_first_n

from ...segmentation.run_lengths import check_rle
from ...utils.downloads import PathManager
from ...utils.errors import list_problems
from ...utils.files import path_within
from ...utils.images import as_array
from ...words.datasets import PANOPTIC_TYPES
from ..dataset_files import check_files, loading

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
        "annotations": ("id", "image_id", "category_id", "bbox", "area", "segmentation"),
    },
    "coco_panoptic_seg": {
        "images": ("id", "file_name"),
        "categories": ("id", "name", "isthing"),
        "annotations": ("image_id", "file_name", "segments_info"),
    },
}
# What label maps are drawn from
INSTANCE_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "area", "segmentation"),
}
_SEGMENT_KEYS = ("id", "category_id", "area", "iscrowd")
_SINGULAR = {"images": "image", "categories": "category", "annotations": "annotation"}
_EMPTY = ([], [[]])  # segmentations
_FAR = 10  # times the image's sides; pycocotools takes memory for each pixel of an outline, also outside

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------- reading


def read_annotations(dataset_name: str) -> dict:
    """Read and check the annotations of a registered dataset of objects; without a file, its rows in COCO's format.

    Images may have no objects. In COCO's format there may be no annotations at all, as for a test set.

    Raises:
        FileNotFoundError: the file, or a picture of panoptic segments, is missing.
        ValueError: an entry is malformed, or the categories are not numbered as in the metadata; names file and entry.
    """
    metadata = MetadataCatalog.get(dataset_name)
    with loading(dataset_name, metadata.get("prepare", "put its files there")):
        if metadata.evaluator_type == "coco" and metadata.get("json_file") is None:
            return check_content(_convert_rows(dataset_name), _KEYS["coco"], "its rows")  # Detectron2 takes them too
        return _read_file_of(metadata)


def _read_file_of(metadata: Metadata) -> dict:
    """Read and check the annotation file of a dataset with these metadata."""
    kind = metadata.evaluator_type
    key = "panoptic_json" if kind in PANOPTIC_TYPES else "json_file"
    path, is_lvis = metadata.get(key), kind == "lvis"
    if path is None:
        raise ValueError(f"its metadata have no '{key}'")
    content = read_annotation_file(path, _KEYS[kind], may_lack_annotations=kind == "coco", is_lvis=is_lvis)
    check_categories(content, _category_names(metadata), path, may_be_reworded=True)

    # Names must stay in their folders, and pictures of segments must be there
    for image in content["images"]:  # named by the ends of their addresses in LVIS
        name = "/".join(image["coco_url"].split("/")[-2:]) if is_lvis else image["file_name"]
        path_within(metadata.get("image_root") or "/", name, path)
    if kind in PANOPTIC_TYPES:
        folder = Path(PathManager.get_local_path(str(metadata.panoptic_root)))
        names = [annotation["file_name"] for annotation in content["annotations"]]
        check_files([path_within(folder, name, path) for name in names], "segment pictures")
    return content


def read_annotation_file(
    path: str | Path, keys: Mapping[str, Sequence[str]], *, may_lack_annotations: bool = False, is_lvis: bool = False
) -> dict:
    """Read and check an annotation file at any path that Detectron2's PathManager knows.

    Annotations with an empty segmentation are left out; a warning counts them. Annotations are renumbered from 1: the
    evaluators of COCO and LVIS take the ID 0 for "no match".

    Args:
        keys: the required keys of entries in the lists "images", "categories" and "annotations".
        may_lack_annotations: whether the list "annotations" may be missing.
        is_lvis: whether segmentations must be polygons, as Detectron2 reads LVIS.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or an entry is malformed; names the file and the entries.
    """
    local_path = PathManager.get_local_path(str(path))
    if not Path(local_path).is_file():
        raise FileNotFoundError(f"no file {local_path}")
    try:
        content = json.loads(Path(local_path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{local_path} is no JSON ({error})") from None

    if may_lack_annotations and isinstance(content, dict) and "annotations" not in content:
        keys = {name: needed for name, needed in keys.items() if name != "annotations"}
    return check_content(content, keys, local_path, is_lvis)


def check_categories(
    content: Mapping[str, list[dict]], names: Mapping[int, str], source: str | Path, *, may_be_reworded: bool = False
) -> None:
    """Check that the categories of an annotation file are numbered as expected; a ValueError names those that are not.

    Args:
        names: expected name by category ID, with spaces for underscores; the file may have fewer.
        source: name of the file, for the error.
        may_be_reworded: whether any name is accepted that is not the expected name of another ID.
    """
    problems = []
    for category in content["categories"]:
        name, expected = category["name"].replace("_", " "), names.get(category["id"])
        is_renamed = name != expected and not (may_be_reworded and name not in names.values())
        if expected is None or is_renamed:
            known = "no such ID" if expected is None else f"'{expected}'"
            problems.append(f"category {category['id']} is '{name}'; expected {known}")
    if names and problems:
        raise ValueError(f"{source}: {_tell(problems)}")


def _category_names(metadata: Metadata) -> dict[int, str]:
    """Return the name by category ID according to a dataset's metadata; empty if there is none yet."""
    names = {}
    for part in ("stuff", "thing"):  # Detectron2's stuff may have one class for all things
        classes = metadata.get(f"{part}_classes", ())
        default = {index + 1: index for index in range(len(classes))} if metadata.evaluator_type == "lvis" else {}
        indices = metadata.get(f"{part}_dataset_id_to_contiguous_id", default)
        names |= {key: classes[index].replace("_", " ") for key, index in indices.items() if index < len(classes)}
    return names


def _convert_rows(dataset_name: str) -> dict:
    """Convert a dataset's rows to COCO's format, as Detectron2's evaluator does."""
    try:
        content = json.loads(json.dumps(convert_to_coco_dict(dataset_name)))
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"its rows cannot be converted to COCO's format ({error!r})") from None
    return {"annotations": [], **content}


# ------------------------------------------------------------------------------------------------- checking


def check_content(content: Any, keys: Mapping[str, Sequence[str]], source: str | Path, is_lvis: bool = False) -> dict:
    """Check the content of an annotation file, and renumber its annotations; see read_annotation_file."""
    by_id = {}
    for name, needed in keys.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or (not entries and name != "annotations"):
            expected = f"expected entries with {', '.join(needed)}"
            raise ValueError(f"{source} has no list '{name}', or an empty one; {expected}")

        # Check each entry, and that no ID comes twice, but in COCO's old minival, which Detectron2 knows
        problems = []
        for number, entry in enumerate(entries):
            try:
                _check_entry(entry, needed)
                if name == "annotations":
                    _check_annotation(entry, by_id["images"], by_id["categories"], is_lvis)
            except ValueError as error:
                key = entry.get("id") if isinstance(entry, dict) else None
                place = f"entry {number} of '{name}'" if key is None else f"{_SINGULAR[name]} {key}"
                problems.append(f"{place} {error}")
        if "id" in needed and not problems and "minival" not in str(source):
            counts = Counter(entry["id"] for entry in entries)
            problems += [f"{_SINGULAR[name]} {key} comes {n} times" for key, n in counts.items() if n > 1]
        if problems:
            raise ValueError(f"{source}: {_tell(problems)}")
        by_id[name] = {entry.get("id"): entry for entry in entries}

    if "segmentation" in keys.get("annotations", ()):
        content["annotations"] = _renumber(content["annotations"], source)
    return content


def _renumber(annotations: list[dict], source: str | Path) -> list[dict]:
    """Return the annotations that are not empty, with IDs from 1."""
    kept = [annotation for annotation in annotations if annotation["segmentation"] not in _EMPTY]
    if len(kept) < len(annotations):
        example = next(annotation["id"] for annotation in annotations if annotation["segmentation"] in _EMPTY)
        counts = f"{len(annotations) - len(kept)} of {len(annotations)} annotations"
        message = (
            f"{source}: {counts} have an empty segmentation and are left out, boxes too, such as annotation {example}"
        )
        log_first_n(logging.WARNING, message, 2, name=__name__, key="message")  # when it is checked, and in the log
    return [{**annotation, "id": number} for number, annotation in enumerate(kept, start=1)]


def _tell(problems: Sequence[str]) -> str:
    """Return the first problem, and, on lines below it, the others."""
    others = f"; and {len(problems) - 1} more:\n{list_problems(problems[1:])}" if problems[1:] else ""
    return problems[0] + others


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0


# What the values of these keys must be, wherever an entry has them
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id image_id category_id": (lambda value: isinstance(value, str) or _is_number(value), "a number or text"),
    "height width": (lambda value: isinstance(value, int) and value > 0, "a whole number of pixels"),
    "file_name name": (lambda value: isinstance(value, str), "a text"),
    "coco_url": (lambda value: isinstance(value, str) and "/" in value, "an address that ends in FOLDER/FILE"),
    "bbox": (_is_box, "four numbers: x, y, width, height"),
    "area": (lambda value: _is_number(value) and value >= 0, "a number, 0 or more"),
    "iscrowd isthing": (lambda value: value in (0, 1), "0 or 1"),
    "ignore": (lambda value: value == 0, "0, the only value that Detectron2 reads"),
    "frequency": (lambda value: value in ("r", "c", "f"), "r, c or f"),
    "neg_category_ids not_exhaustive_category_ids segments_info": (lambda value: isinstance(value, list), "a list"),
}


# The checks below raise a ValueError whose text goes on after the entry's name


def _check_entry(entry: object, needed: Sequence[str]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"is no object; expected one with {', '.join(needed)}")
    for key in needed:
        if entry.get(key) in (None, ""):
            raise ValueError(f"has no '{key}'")
    for keys, (is_valid, expected) in _VALUES.items():
        for key in keys.split():
            if key in entry and not is_valid(entry[key]):
                raise ValueError(f"has the {key} {entry[key]!r:.60}; expected {expected}")


def _check_annotation(annotation: dict, images: Mapping, categories: Mapping, is_lvis: bool) -> None:
    image = images.get(annotation["image_id"])
    if image is None:
        raise ValueError(f"is of image {annotation['image_id']}, which is not in the list 'images'")

    # Panoptic segments lie in a picture; the file describes them
    if "segments_info" in annotation:
        for number, segment in enumerate(annotation["segments_info"]):
            try:
                _check_entry(segment, _SEGMENT_KEYS)
                _check_category(segment, categories)
            except ValueError as error:
                place = f"({annotation['file_name']}): entry {number} of 'segments_info'"
                raise ValueError(f"{place} {error}") from None
        return

    _check_category(annotation, categories)
    if "segmentation" in annotation:
        _check_segmentation(annotation["segmentation"], image["height"], image["width"], is_lvis)


def _check_category(annotation: dict, categories: Mapping) -> None:
    if annotation["category_id"] not in categories:
        raise ValueError(f"has the category_id {annotation['category_id']}, which is not in the list 'categories'")


def _check_segmentation(segmentation: object, height: int, width: int, is_lvis: bool) -> None:
    """Check a segmentation of an image of this size; it may be empty."""
    if isinstance(segmentation, dict) and not is_lvis:
        return check_rle(segmentation, height, width)
    if not isinstance(segmentation, list) or (is_lvis and segmentation in _EMPTY):
        expected = "a list of polygons" if is_lvis else "a list of polygons or RLE"
        raise ValueError(f"has the segmentation {segmentation!r:.60}; expected {expected}")

    for number, polygon in enumerate([] if segmentation in _EMPTY else segmentation):
        try:
            numbers = np.asarray(polygon)
        except ValueError:  # lists of several lengths
            numbers = np.zeros(0)
        name = f"has a segmentation whose polygon {number} "
        if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
            raise ValueError(f"{name}is {polygon!r:.60}; expected x and y in turn of at least three points")
        if numbers.dtype.kind not in "iuf" or not (np.abs(numbers) <= _FAR * (height + width)).all():
            raise ValueError(f"{name}has coordinates far outside of the image, or that are no numbers")


# ------------------------------------------------------------------------------------------------- drawing


def group_by_image(content: Mapping[str, list[dict]]) -> list[tuple[dict, list[dict]]]:
    """Return each image of an annotation file with its annotations."""
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return [(image, by_image[image["id"]]) for image in content["images"]]


def check_picture(image: Mapping[str, object], path: Path) -> None:
    """Check that a picture, if it is there, has the height and width in its annotations.

    Raises:
        BrokenSample, SizeMismatchError: it cannot be read, or has another size; names it.
    """
    if path.exists():
        check_image_size({**image, "file_name": str(path)}, as_array(path))


def draw_instances(label: np.ndarray, instances: Iterable[dict], offset: int = 0) -> None:
    """Draw checked annotations of one image onto its label map [H, W]: crowds first, then large ones before small ones.

    Each instance writes its category ID plus `offset`. It has `segmentation`, `area`, and `iscrowd` where there are
    crowds.
    """
    for instance in sorted(instances, key=lambda instance: (not instance.get("iscrowd"), -instance["area"])):
        segmentation = instance["segmentation"]
        rle = segmentation if _is_compressed(segmentation) else pycocotools.mask.frPyObjects(segmentation, *label.shape)
        if isinstance(rle, list):  # one for each polygon
            rle = pycocotools.mask.merge(rle)
        label[pycocotools.mask.decode(rle) == 1] = instance["category_id"] + offset


def _is_compressed(segmentation: object) -> bool:
    """Tell whether a segmentation is COCO's compressed RLE, rather than polygons or numbers."""
    return isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
