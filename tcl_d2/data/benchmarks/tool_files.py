"""Labels of annotation tools as datasets, by their paths: COCO's JSON, CVAT's masks, a folder of labelme's.

They are read as they lie there. Pixels that nobody labeled are the background. A class "ignored" or "__ignore__" has
the pixels that are not decided on.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...segmentation.drawing import distinct_colors
from ...segmentation.tool_files import IMAGES, LABEL_MAP, MASKS
from ...utils.files import open_path, path_within
from ...utils.images import as_array
from ...words.files import Source, check_class_words
from ...words.parsing import BACKGROUND
from ..dataset_files import check_files, find_images, glob_files, loading, subsample
from ..labels import read_label
from .annotations import INSTANCE_KEYS, check_content, draw_instances, group_by_image, read_annotation_file
from .labelme import read_labelme_folder
from .register import register_benchmark_folder, register_rows

_BACKGROUNDS = (BACKGROUND, "_background_")  # as labelme names it, too
_IGNORED = ("ignored", "__ignore__")
_IGNORE_LABEL = 65535  # 255 may be a class
_PREPARE = "correct the path, or put the files there (docs/label.md)"


def register_label_path(path: str) -> None:
    """Register a path of labels under itself as its name: a folder with classes.txt, or files of annotation tools.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: a file cannot be used; names it.
    """
    register = find_format(path) or (_register_coco if path.endswith(".json") else register_benchmark_folder)
    with loading(path, _PREPARE):
        register(path)


def find_format(path: str) -> Callable[[str], object] | None:
    """Return the function that registers a path of labels; None for what has none, such as pairs to train on."""
    place = Path(path)
    if place.is_file() and place.suffix == ".json":
        # The lists of captions that end so have lines that begin otherwise
        with place.open("rb") as file:
            is_coco = re.match(rb'\s*\{\s*"(info|licenses|images|annotations|categories|type)"', file.read(4096))
        return _register_coco if is_coco else None
    for name, register in (("classes.txt", register_benchmark_folder), (LABEL_MAP, _register_cvat)):
        if (place / name).is_file():
            return register
    files = subsample(glob_files(place, "**/*.json"), 20) if place.is_dir() else []
    return _register_labelme if any(b'"shapes"' in file.read_bytes() for file in files) else None


def _register(path: str, names: Sequence[str], source: Path, list_rows: Callable, read: Callable) -> None:
    """Register labels whose values are the places of classes in `names`."""
    check_class_words([[name] for name in names], Source(str(source)))
    plain = [name for name in names if name not in _BACKGROUNDS + _IGNORED]
    if not plain:
        raise ValueError(f"{source} names no class")
    background = len(set(names).intersection(_BACKGROUNDS)) > 0
    classes = [BACKGROUND] * background + plain
    label_map = {k: classes.index(name) for k, name in enumerate(names) if name in plain}
    label_map |= {k: 0 if name in _BACKGROUNDS else _IGNORE_LABEL for k, name in enumerate(names) if name not in plain}

    colors = distinct_colors(len(classes))
    metadata = {"stuff_classes": classes, "stuff_colors": colors, "background": background, "title": path}
    metadata |= {"label_map": label_map, "ignore_label": _IGNORE_LABEL, "read_label": read}
    register_rows(path, list_rows, _PREPARE, **metadata)


# ------------------------------------------------------------------------------------------------- annotations


class AnnotationReader:
    """Draws the labels of images from their checked annotations."""

    def __init__(self, jobs: Mapping[str, tuple[dict, list[dict]]], values: Mapping[int | str, int]):
        """Set the image and annotations by `sem_seg_file_name`, and the value of each category's ID."""
        self.jobs = jobs
        self.values = values

    def __call__(self, name: str) -> np.ndarray:
        """Return the values of a label, uint16 [H, W], 0 where nothing was annotated."""
        image, instances = self.jobs[name]
        label = np.zeros((image["height"], image["width"]), np.uint16)
        draw_instances(label, ({**entry, "category_id": self.values[entry["category_id"]]} for entry in instances))
        return label


def _register_coco(path: str) -> None:
    source = Path(path).resolve()
    content = read_annotation_file(source, INSTANCE_KEYS)
    folder = _find_image_root(source, content["images"][0]["file_name"])
    jobs = {f"{source}#{image['id']}": (image, entries) for image, entries in group_by_image(content)}
    _register_annotations(path, source, content["categories"], folder, jobs)


def _find_image_root(source: Path, file_name: str) -> Path:
    """Return the folder of a COCO file's images: of CVAT's, Datumaro's or COCO's own tree, or the file's folder."""
    base = source.parent.parent if source.parent.name == "annotations" else source.parent
    subset = source.stem.rpartition("_")[2]
    folders = [base / "images" / subset, base / "images", base / subset, base]
    for folder in folders:
        if path_within(folder, file_name, source).exists():
            return folder
    raise FileNotFoundError(f"no image {file_name} of {source} in {', '.join(map(str, folders))}")


def _register_labelme(path: str) -> None:
    source = Path(path).resolve()
    content = check_content(read_labelme_folder(source), INSTANCE_KEYS, source)
    jobs = {image["id"]: (image, entries) for image, entries in group_by_image(content)}
    _register_annotations(path, source, content["categories"], source, jobs)


def _register_annotations(path: str, source: Path, categories: list[dict], folder: Path, jobs: Mapping) -> None:
    # A category of the background's name is what nobody labeled, too
    names = [BACKGROUND, *(category["name"] for category in categories if category["name"] != BACKGROUND)]
    values = {category["id"]: names.index(category["name"]) for category in categories}
    _register(path, names, source, partial(_list_images, source, folder, jobs), AnnotationReader(jobs, values))


def _list_images(source: Path, folder: Path, jobs: Mapping[str, tuple[dict, list[dict]]]) -> list[dict]:
    rows = []
    for name, (image, _) in jobs.items():
        file_name = str(path_within(folder, image["file_name"], source))
        sizes = {"height": image["height"], "width": image["width"]}
        rows.append({"file_name": file_name, "sem_seg_file_name": name, "image_id": image["id"], **sizes})
    check_files([Path(row["file_name"]) for row in rows], f"images of {source}")
    return rows


# ------------------------------------------------------------------------------------------------- masks


class ColorMaskReader:
    """Reads masks in the colors of a label map, as the places of the colors there."""

    def __init__(self, colors: Sequence[tuple[int, int, int]]):
        codes = _encode(np.array(colors))
        self._order = np.argsort(codes)
        self._codes = codes[self._order]

    def __call__(self, path: str) -> np.ndarray:
        """Return the values of a mask, integers [H, W]; a gray one has them as they are.

        Raises:
            OSError: it cannot be read; names it.
            ValueError: it has a color that is not in the label map; names both.
        """
        try:
            with open_path(path) as file, Image.open(file) as image:
                is_gray = len(image.getbands()) == 1 and image.mode != "P"
        except Exception as error:  # PIL raises many types
            raise OSError(f"Label {path} could not be read: {error}") from None
        if is_gray:
            return read_label(path)

        codes = _encode(as_array(path).astype(int))
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        is_known = self._codes[places] == codes
        if not is_known.all():
            code = int(codes[~is_known][0])
            color = code >> 16, code >> 8 & 255, code & 255
            raise ValueError(f"Label {path} has the color {color}, which no class of {LABEL_MAP} has: add its line.")
        return self._order[places].astype(np.uint16)


def _encode(colors: np.ndarray) -> np.ndarray:
    """Return one number for each color [..., 3]."""
    return colors @ np.array([1 << 16, 1 << 8, 1])


def _register_cvat(path: str) -> None:
    folder = Path(path).resolve()
    colors = _read_label_map(folder / LABEL_MAP)
    read = ColorMaskReader(list(colors.values()))
    _register(path, list(colors), folder / LABEL_MAP, partial(_list_masks, folder, read), read)


def _read_label_map(path: Path) -> dict[str, tuple[int, int, int]]:
    """Return the color of each class of CVAT's label map; a ValueError names the line."""
    colors: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, color = (*line.split(":"), "")[:2]
        channels = tuple(int(part) for part in color.split(",") if re.fullmatch(r"\s*\d{1,3}\s*", part))
        if not name.strip() or len(channels) != 3 or max(channels) > 255 or channels in colors.values():
            expected = "expected NAME:RED,GREEN,BLUE::, of 0..255, and no color of another class"
            raise ValueError(f"{path}, line {number}: {line!r:.80}; {expected}")
        if name.strip() in colors:
            raise ValueError(f"{path}, line {number}: the class '{name.strip()}' stands there twice")
        colors[name.strip()] = channels
    return colors


def _list_masks(folder: Path, read: Callable[[str], np.ndarray]) -> list[dict]:
    """List the pictures that have masks; some of the masks are read, for those of another label map."""
    masks = find_images(str(folder / MASKS))
    images = find_images(str(folder / IMAGES))
    missing = sorted(masks.keys() - images.keys())
    if missing:
        counts = f"{len(missing)} of {len(masks)} masks"
        raise FileNotFoundError(f"{counts} have no picture in {folder / IMAGES}, such as {missing[0]}")
    keys = sorted(masks)
    for key in subsample(keys, 20):
        read(str(masks[key]))
    return [{"file_name": str(images[key]), "sem_seg_file_name": str(masks[key]), "image_id": key} for key in keys]
