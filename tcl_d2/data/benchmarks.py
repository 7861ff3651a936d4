"""What models are evaluated on: zero-shot benchmarks as Detectron2 catalog entries."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ..assets import FOLDER as ASSETS
from ..utils.visualizer import distinct_colors
from . import shapes
from .images import IMAGE_SUFFIXES
from .labels import parse_rule
from .words import read_words

EVALUATOR_TYPE = "zero_shot_sem_seg"
BACKGROUND = "background"


def datasets_root() -> Path:
    """Where data sets lie: $DETECTRON2_DATASETS, or datasets/ in the working directory, as in Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


# --------------------------------------------------------------------------------------------- listing files


def list_pairs(images: str, labels: Sequence[str], ids: str | None = None) -> list[dict]:
    """The images of a benchmark, each with its label file, sorted by ID; arguments as register_benchmark's.

    Raises:
        FileNotFoundError: a list, folder, image or label is missing; says which.
    """
    root = datasets_root()
    if ids is None:
        pictures = find_images(images)
    else:
        pictures = {key: root / images.format(key) for key in _read_ids(root / ids)}
        _check_there(pictures.values(), "images")
    patterns = [pattern if "{}" in pattern else f"{pattern}/{{}}.png" for pattern in labels]
    there = [pattern for pattern in patterns if (root / pattern.partition("{}")[0]).is_dir()]
    if not there:
        raise FileNotFoundError(f"no folder {' or '.join(str(root / p.partition('{}')[0]) for p in patterns)}")
    truths = {key: root / there[0].format(key) for key in pictures}
    _check_there(truths.values(), "labels")
    return [
        {"file_name": str(pictures[key]), "sem_seg_file_name": str(truths[key]), "image_id": key}
        for key in sorted(pictures)
    ]


def find_images(images: str) -> dict[str, Path]:
    """Image files by ID, for a folder or a pattern 'folder/{}suffix'; FileNotFoundError if there are none."""
    head, _, tail = images.partition("{}")
    folder, suffixes = datasets_root() / head, (tail,) if tail else IMAGE_SUFFIXES
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found = {}
    for path in _walk(folder):
        suffix = next((end for end in suffixes if path.name.lower().endswith(end.lower())), None)
        if suffix is not None:
            key = path.relative_to(folder).as_posix()[: -len(suffix)]
            if key in found:
                raise FileNotFoundError(f"two images with one name, {found[key]} and {path}: their label is not clear")
            found[key] = path
    if not found:
        raise FileNotFoundError(f"no images in {folder}")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder, followlinks=True):
        yield from (Path(place, name) for name in names)


def subsample(rows: Sequence, count: int) -> list:
    """`count` of the rows, evenly spaced, so that a quick look meets all of a data set; 0: all."""
    if not 0 < count < len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def _read_ids(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    keys = path.read_text(encoding="utf-8-sig").split()
    if not keys:
        raise FileNotFoundError(f"the list {path} is empty")
    return keys


def _check_there(paths: Iterable[Path], kind: str) -> None:
    """FileNotFoundError unless all files exist. Lists each folder once: a look at every file is slow over a network."""
    paths, listing = list(paths), {}
    for folder in {path.parent for path in paths}:
        listing[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [path for path in paths if path.name not in listing[path.parent]]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} {kind} are missing, such as {missing[0]}")


# ----------------------------------------------------------------------------------------------- registering


def register_benchmark(
    name: str,
    images: str,
    labels: str | Sequence[str],
    classes: Sequence[str],
    background: bool = False,
    *,
    ids: str | None = None,
    label_map: dict[int, int] | None = None,
    ignore_label: int = 255,
    colors: Sequence[tuple[int, int, int]] | None = None,
    prepare: str = "put images and labels there",
    title: str | None = None,
    num_images: Sequence[int] = (),
    published: dict[str, float] | None = None,
) -> None:
    """Registers a folder of images and one of label PNGs as a zero-shot benchmark. Nothing is read from disk yet.

    Args:
        images: folder, with any of jpg, jpeg, png, webp, or a pattern "folder/{}suffix" where {} is an image's ID,
            which may have slashes. Relative to DETECTRON2_DATASETS, or absolute; so are labels and ids.
        labels: folder of PNGs named by ID, or a pattern; of several, the first whose folder exists.
        classes: class words in the order of the labels; with `background`, the first word stands for the background
            and is never asked for.
        ids: text file of the IDs that belong to the benchmark; None: all images of the folder.
        label_map: value in the label file -> index of `classes` or `ignore_label`; None: values are these already.
        colors: RGB of each class for pictures.
        prepare: the command that makes the data, for the error when it is missing.
        title: a short name for tables.
        num_images: how many images there should be; several where more than one count is in use.
        published: mIoU in percent by meta-architecture, as the paper has it.

    Raises:
        ValueError: a class word stands for two labels.
    """
    _check_distinct(name, classes)
    sources = [labels] if isinstance(labels, str) else list(labels)

    def load() -> list[dict]:
        try:
            return list_pairs(images, sources, ids)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Data set '{name}': {error}. Looked below DETECTRON2_DATASETS={datasets_root()}. "
                f"To prepare it: {prepare}"
            ) from None

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes),
        stuff_colors=[tuple(color) for color in colors or distinct_colors(len(classes))],
        background=background,
        label_map=label_map,
        ignore_label=ignore_label,
        evaluator_type=EVALUATOR_TYPE,
        title=title or name,
        num_images=tuple(num_images),
        published=published or {},
    )


def _check_distinct(name: str, classes: Sequence[str]) -> None:
    indices = {}
    for index, word in enumerate(classes):
        first = indices.setdefault(word, index)
        if first != index:
            raise ValueError(
                f"Data set '{name}': the class word '{word}' stands for two labels, {first} and {index}. Give them "
                "different words, such as 'crane (bird)' and 'crane (machine)'."
            )


def class_legend(dataset_name: str) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names and RGB colours of what LabelMapper gives for a registered data set: its classes, then ignored pixels."""
    metadata = MetadataCatalog.get(dataset_name)
    return [*metadata.stuff_classes, "ignored"], [*metadata.stuff_colors, (200, 200, 200)]


def register_benchmark_folder(folder: str, name: str | None = None) -> str:
    """Registers a folder that holds images/, labels/ (PNGs of the same names) and classes.txt as a benchmark.

    classes.txt (UTF-8) has a class word a line, in the order of the label values from 0; if the first is "background",
    it is the background. The label value 255 is ignored.

    Args:
        folder: absolute, or relative to the working directory.
        name: None: the folder's path as it is given.

    Returns:
        the name it is registered by.

    Raises:
        FileNotFoundError: there is no classes.txt.
        ValueError: classes.txt is not UTF-8, is empty, has a word twice or more than 255; or the name is taken.
    """
    name = name or str(folder)
    path = Path(folder).resolve()
    words = path / "classes.txt"
    if not words.is_file():
        raise FileNotFoundError(
            f"Data set '{name}': no file {words}. A folder that is a benchmark holds images/, labels/ (PNGs of the "
            "same names) and classes.txt (a class word a line, in the order of the label values)."
        )
    classes = read_words(words)
    if len(classes) > 255:
        raise ValueError(f"Data set '{name}': {len(classes)} classes; the label value 255 is ignored, so 255 is most.")
    if name in DatasetCatalog.list():
        raise ValueError(f"There is a data set '{name}' already; give the folder another name.")
    register_benchmark(name, str(path / "images"), str(path / "labels"), classes, classes[0] == BACKGROUND)
    return name


# ---------------------------------------------------------------------------------- what comes with the project


def _read_json(path: str) -> dict:
    return json.loads((ASSETS / path).read_text(encoding="utf-8"))


def _register_table() -> None:
    """The eight benchmarks of the unified protocol and the train splits for model selection (benchmarks.json)."""
    for name, entry in _read_json("benchmarks.json").items():
        words = {BACKGROUND: entry["background"]} if "background" in entry else {}
        for file in entry["classes"]:
            words |= _read_json(f"classes/{file}.json")
        register_benchmark(
            name,
            entry["images"],
            entry["labels"],
            list(words),
            BACKGROUND in words,
            ids=entry.get("ids"),
            label_map=parse_rule(entry["rule"], ignore_label=255) if "rule" in entry else None,
            colors=list(words.values()),
            prepare=f"python datasets/{entry['prepare']}",
            title=entry["title"],
            num_images=entry["num_images"],
            published=entry.get("published"),
        )


def _register_lvis() -> None:
    """LVIS v1 as a benchmark of 1,203 classes; label files hold category IDs, 0 where nothing is annotated."""
    ignore = 65535  # 255 is a class here
    categories = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    register_benchmark(
        "zeroshot_lvis_val",
        images="coco/{}.jpg",
        labels="lvis/semantic/{}.png",
        ids="lvis/semantic/val.txt",
        classes=[category["name"].replace("_", " ") for category in categories],
        label_map={0: ignore} | {category["id"]: k for k, category in enumerate(categories)},
        ignore_label=ignore,
        prepare="python datasets/prepare_lvis.py",
        title="LVIS",
        num_images=(19809,),
    )


def _register_shapes() -> None:
    """The small world's three: with background, without, and with its grounds for stuff. One set of label files."""
    objects, everything = shapes.OBJECTS, shapes.OBJECTS + shapes.GROUNDS
    things, grounds = range(len(objects)), range(len(objects), len(everything))
    variants = {
        "shapes_val": ((BACKGROUND, *objects), True, {k: k + 1 for k in things} | {k: 0 for k in grounds}),
        "shapes_objects_val": (objects, False, {k: k for k in things} | {k: 255 for k in grounds}),
        "shapes_stuff_val": (everything, False, None),
    }
    for name, (classes, background, label_map) in variants.items():
        register_benchmark(
            name,
            "shapes/val/images",
            "shapes/val/labels",
            classes,
            background,
            label_map=label_map,
            prepare="python datasets/prepare_shapes.py",
        )


_register_table()
_register_lvis()
_register_shapes()
