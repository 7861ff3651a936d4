"""The small world's objects: annotations in COCO's formats.

A scene has each class at most once, so that the pixels of a class are one object, also where another one cuts it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image

from ...segmentation.run_lengths import encode_rle
from ...utils.files import replacing
from ..dataset_files import glob_files
from ..labels import read_label
from .scenes import GROUNDS, MIN_VISIBLE, OBJECTS

INSTANCES, PANOPTIC = "instances.json", "panoptic.json"
_CLASSES = OBJECTS + GROUNDS


def write_annotations(folder: Path) -> None:
    """Write what the label files of a folder say of objects, in COCO's formats of instances and panoptic segments.

    Objects that show fewer than MIN_VISIBLE pixels are left out, as in captions; they are void in panoptic segments.

    Args:
        folder: has labels/ID.png, and gets panoptic/ID.png, panoptic.json and, last, instances.json.
    """
    images, instances, panoptic = [], [], []
    for path in glob_files(folder, "labels/*.png"):
        label = read_label(str(path))
        image_id = int(path.stem)
        images.append({"id": image_id, "file_name": path.name, "height": label.shape[0], "width": label.shape[1]})

        objects = _describe_objects(label, image_id)
        instances += [{**annotation, "id": len(instances) + i} for i, annotation in enumerate(objects, start=1)]
        panoptic.append({"image_id": image_id, "file_name": path.name, "segments_info": _describe_segments(label)})
        with replacing(folder / "panoptic" / path.name) as unfinished:
            Image.fromarray(_draw_segments(label)).save(unfinished, "PNG")

    categories = [{"id": k + 1, "name": name, "isthing": int(k < len(OBJECTS))} for k, name in enumerate(_CLASSES)]
    things = [category for category in categories if category["isthing"]]
    _write_json(folder / PANOPTIC, {"images": images, "annotations": panoptic, "categories": categories})
    _write_json(folder / INSTANCES, {"images": images, "annotations": instances, "categories": things})


def _describe_objects(label: np.ndarray, image_id: int) -> list[dict]:
    """Return an annotation for each object of a label map uint8 [H, W]."""
    annotations = []
    for k in _visible_classes(label):
        if k < len(OBJECTS):
            rle: Any = encode_rle(label == k)
            annotation: dict[str, Any] = {"image_id": image_id, "category_id": k + 1, "iscrowd": 0}
            annotation["bbox"] = pycocotools.mask.toBbox(rle).tolist()
            annotation["area"] = int(pycocotools.mask.area(rle))
            annotation["segmentation"] = rle
            annotations.append(annotation)
    return annotations


def _describe_segments(label: np.ndarray) -> list[dict]:
    """Return a description of each panoptic segment of a label map uint8 [H, W]; its ID is that of its category."""
    return [
        {"id": k + 1, "category_id": k + 1, "area": int((label == k).sum()), "iscrowd": 0}
        for k in _visible_classes(label)
    ]


def _draw_segments(label: np.ndarray) -> np.ndarray:
    """Return the IDs of panoptic segments as COCO's pictures have them, uint8 [H, W, 3]: red alone, below 256."""
    picture = np.zeros((*label.shape, 3), np.uint8)
    picture[..., 0] = np.where(np.isin(label, _visible_classes(label)), label + 1, 0)
    return picture


def _visible_classes(label: np.ndarray) -> list[int]:
    """Return the classes of a label map, without objects that hardly show."""
    counts = np.bincount(label.ravel())[: len(_CLASSES)]
    return [k for k, count in enumerate(counts.tolist()) if count >= (MIN_VISIBLE if k < len(OBJECTS) else 1)]


def _write_json(path: Path, content: dict) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content))
