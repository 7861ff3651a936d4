"""Labels as annotation tools read them: COCO's JSON, CVAT's "Segmentation mask 1.1", and labelme's JSON.

Each writer makes a folder of the pictures and their labels, which is also a dataset, see
data.benchmarks.register_label_path. Pixels of no word are the background.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask
from PIL import Image

from ..words.parsing import BACKGROUND
from .drawing import distinct_colors
from .outlines import label_outlines
from .run_lengths import encode_rle

COCO_FILE = "annotations/instances_default.json"
LABEL_MAP, IMAGES, MASKS = "labelmap.txt", "JPEGImages", "SegmentationClass"  # of CVAT


class LabeledPicture(NamedTuple):
    """A picture and what was found in it.

    Attributes:
        name: may have folders; no other picture's.
        path: of the picture.
        labels: number of each pixel's word, from 1, integers [H, W]; 0 for the background.
        objects: in COCO's format of results, their `category_id` the number of the word from 0.
    """

    name: str
    path: Path
    labels: np.ndarray
    objects: Sequence[dict] = ()


Writer = Callable[[Path, Iterable[LabeledPicture], Sequence[str]], None]


def write_coco(folder: Path, pictures: Iterable[LabeledPicture], words: Sequence[str]) -> None:
    """Write COCO_FILE, an annotation for each word of each picture, and results.json, the objects with their scores."""
    images, annotations, results = [], [], []
    for image_id, picture in enumerate(pictures, start=1):
        height, width = picture.labels.shape
        file_name = _add_picture(picture, folder / "images")
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for label in np.unique(picture.labels[picture.labels > 0]).tolist():
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "iscrowd": 0}
            annotations.append({**ids, **_describe(picture.labels == label)})
        results += [
            {**result, "image_id": image_id, "category_id": result["category_id"] + 1} for result in picture.objects
        ]

    categories = [{"id": number, "name": word, "supercategory": ""} for number, word in enumerate(words, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _write(folder / COCO_FILE, json.dumps(content))
    _write(folder / "results.json", json.dumps(results))


def write_cvat(folder: Path, pictures: Iterable[LabeledPicture], words: Sequence[str]) -> None:
    """Write a label map, a mask of each picture in its colors, and the list of the pictures."""
    colors = distinct_colors(len(words) + 1)
    lines = [f"{word}:{','.join(map(str, color))}::" for word, color in zip([BACKGROUND, *words], colors)]
    _write(folder / LABEL_MAP, "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))

    names = []
    for picture in pictures:
        _add_picture(picture, folder / IMAGES)
        path = folder / MASKS / f"{picture.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(colors, np.uint8)[picture.labels]).save(path)
        names.append(picture.name)
    _write(folder / "ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in names))


def write_labelme(folder: Path, pictures: Iterable[LabeledPicture], words: Sequence[str]) -> None:
    """Write a JSON beside each picture, whose polygons, drawn one over the other, are the labels."""
    for picture in pictures:
        height, width = picture.labels.shape
        shapes = [
            {"label": [BACKGROUND, *words][label], "points": corners.astype(float).tolist(), **_SHAPE}
            for label, corners in label_outlines(picture.labels)
        ]
        file_name = _add_picture(picture, folder)
        content = {"version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": Path(file_name).name}
        content |= {"imageData": None, "imageHeight": height, "imageWidth": width}
        _write(folder / f"{picture.name}.json", json.dumps(content, indent=1))


_SHAPE = {"group_id": None, "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
WRITERS: dict[str, Writer] = {"coco": write_coco, "cvat": write_cvat, "labelme": write_labelme}


def check_words(words: Sequence[str], formats: Iterable[str]) -> None:
    """Raise a ValueError for a word that a label map of CVAT's cannot hold."""
    for word in words:
        if "cvat" in formats and (":" in word or word.startswith("#")):
            raise ValueError(f"--save cvat: its label map cannot hold the word '{word}', which has a ':' or '#'")


def _describe(mask: np.ndarray) -> dict:
    """Return what COCO's format says of a mask bool [H, W]."""
    rle: Any = encode_rle(mask)
    return {"bbox": pycocotools.mask.toBbox(rle).tolist(), "area": int(mask.sum()), "segmentation": rle}


def _add_picture(picture: LabeledPicture, folder: Path) -> str:
    """Put a picture into a folder, and return its path below it.

    It is a hard link, or a copy where there can be none: tools refuse links that lead out of their folder.
    """
    file_name = picture.name + picture.path.suffix
    link = folder / file_name
    if link.exists():  # labels that are written again, beside their pictures
        return file_name
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(picture.path.resolve(), link)
    except OSError:  # another disk, or another user's file
        shutil.copy(picture.path, link)
    return file_name


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
