"""Reading labelme's JSON files as annotations in COCO's format."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from ...segmentation.outlines import find_crossing
from ...segmentation.run_lengths import encode_rle
from ...utils.errors import list_problems
from ...utils.images import MAX_PIXELS
from ..dataset_files import glob_files

_ANGLES = np.linspace(0, 2 * np.pi, 64, endpoint=False)  # of the corners that stand for a circle
_POLYGONS = ("polygon", "oriented_rectangle")


def read_labelme_folder(folder: Path) -> dict:
    """Read the labels of a folder: each NAME.json beside its picture, also in folders below.

    Shapes lie one over the other in their order, as labelme draws them: `area` stands for that order. An image's ID is
    the path of its JSON. Pictures without a JSON, and a picture that is part of a JSON, are left out.

    Raises:
        ValueError: a file cannot be used; names all of them.
    """
    images, annotations, problems = [], [], []
    for path in glob_files(folder, "**/*.json"):
        try:
            image, shapes = _read_file(path, folder)
        except (OSError, ValueError) as error:
            problems.append(f"{path} {error}")
            continue
        images.append(image)
        annotations += [
            {"id": f"{number} of {path}", "image_id": image["id"], "iscrowd": 0, "area": len(shapes) - number, **shape}
            for number, shape in enumerate(shapes)
        ]
    if problems:
        raise ValueError(f"{len(problems)} label files cannot be used:\n{list_problems(problems)}")

    names = sorted({annotation["category_id"] for annotation in annotations})
    categories = [{"id": name, "name": name} for name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


# The functions below raise a ValueError whose text goes on after the file's name


def _read_file(path: Path, folder: Path) -> tuple[dict, list[dict]]:
    """Return the image of a file, and of each shape its `category_id`, a name, and its `segmentation`."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError("has no list 'shapes'; expected labelme's JSON")
    if not isinstance(content.get("imagePath"), str):
        raise ValueError("has no 'imagePath'")

    size: Any = content.get("imageHeight"), content.get("imageWidth")
    if not all(type(side) is int and side > 0 for side in size) or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"has the imageHeight and imageWidth {size}; expected those of its picture, in pixels")
    picture = path.with_name(PureWindowsPath(content["imagePath"]).name)
    image = {"id": str(path), "file_name": picture.relative_to(folder).as_posix(), "height": size[0], "width": size[1]}
    return image, [_read_shape(shape, number, size) for number, shape in enumerate(content["shapes"])]


def _read_shape(shape: object, number: int, size: tuple[int, int]) -> dict:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
        raise ValueError(f"has the shape {number} without a 'label'")
    name, kind = shape["label"].strip(), shape.get("shape_type") or "polygon"
    place = f"has the shape {number}, '{name}', "
    try:
        points = np.array(shape.get("points"), float)
    except (TypeError, ValueError):
        points = np.array([])
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"{place}whose 'points' are no pairs x, y")

    if kind == "mask":
        return {"category_id": name, "segmentation": _read_mask(shape, points, size, place)}
    corners = _corners(kind, points)
    if corners is None:
        raise ValueError(
            f"{place}a {kind} of {len(points)} points; expected a polygon, rectangle, circle or mask, which has an area"
        )
    crossing = find_crossing(corners)
    if crossing is not None:
        raise ValueError(f"{place}a polygon whose sides {crossing[0]} and {crossing[1]} cross: draw it as two polygons")
    return {"category_id": name, "segmentation": [corners.ravel().tolist()]}


def _corners(kind: str, points: np.ndarray) -> np.ndarray | None:
    """Return the corners [n, 2] of a shape; None unless it has an area."""
    if kind in _POLYGONS and len(points) > 2:
        return points
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if kind == "circle" and len(points) == 2:
        center, radius = points[0], np.hypot(*(points[1] - points[0]))
        return center + radius * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
    return None


def _read_mask(shape: Mapping, points: np.ndarray, size: tuple[int, int], place: str) -> dict:
    """Return the RLE of a mask, a PNG in base64 of the pixels from the first point to the second."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            (x0, y0), (x1, y1) = points.astype(int)
            if image.size != (x1 - x0 + 1, y1 - y0 + 1) or min(x0, y0) < 0 or x1 >= size[1] or y1 >= size[0]:
                raise ValueError("it does not lie between its points, or not in the picture")
            mask = np.zeros(size, bool)
            mask[y0 : y1 + 1, x0 : x1 + 1] = np.asarray(image.convert("L"))
    except Exception as error:  # PIL raises many types
        raise ValueError(f"{place}whose mask cannot be read: {error}") from None
    return encode_rle(mask)
