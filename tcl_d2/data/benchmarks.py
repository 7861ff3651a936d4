"""What models are evaluated on: zero-shot benchmarks as Detectron2 catalog entries."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ..assets import FOLDER as ASSETS
from ..modeling.dataset_classes import has_classes
from ..modeling.vocabulary import ClassWords, dataset_classes, leave_to_first
from ..utils.images import IMAGE_SUFFIXES
from ..utils.visualizer import distinct_colors
from ..utils.words import BACKGROUND, as_lists, class_names, unique_names
from . import shapes
from .class_words import Source, check_class_words, check_fits_classes, read_class_words
from .labels import parse_rule

EVALUATOR_TYPE = "zero_shot_sem_seg"  # names the evaluator, see evaluation.EVALUATOR_REGISTRY


def datasets_root() -> Path:
    """Return the folder of the datasets: $DETECTRON2_DATASETS, or datasets/ in the working directory, as Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


# --------------------------------------------------------------------------------------------- listing files


def list_pairs(images: str, labels: Sequence[str], ids: str | None = None) -> list[dict]:
    """List the images of a benchmark with their label files, sorted by ID; arguments as register_benchmark's.

    Raises:
        FileNotFoundError: a list, folder, image or label is missing; says which.
        ValueError: the list is empty, or two images have one ID.
    """
    root = datasets_root()
    if ids is None:
        image_paths = find_images(images)
    else:
        image_paths = {key: root / images.format(key) for key in _read_ids(root / ids)}
        _check_files(image_paths.values(), "images")

    pattern = _choose_labels(labels)
    label_paths = {key: root / pattern.format(key) for key in image_paths}
    _check_files(label_paths.values(), "labels")

    return [
        {"file_name": str(image_paths[key]), "sem_seg_file_name": str(label_paths[key]), "image_id": key}
        for key in sorted(image_paths)
    ]


def find_images(images: str) -> dict[str, Path]:
    """Find the image files of a folder, or of a pattern 'folder/{}suffix'.

    Returns:
        path by ID: the part of the path below the folder, without the suffix.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: two images have one ID.
    """
    head, _, tail = images.partition("{}")
    folder = datasets_root() / head
    suffixes = (tail,) if tail else IMAGE_SUFFIXES
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")

    paths = {}
    for path in walk_files(folder):
        suffix = next((end for end in suffixes if path.name.lower().endswith(end.lower())), None)
        if suffix is not None:
            key = path.relative_to(folder).as_posix()[: -len(suffix)]
            if key in paths:
                raise ValueError(f"two images have the name '{key}', {paths[key]} and {path}; rename or remove one")
            paths[key] = path

    if not paths:
        raise FileNotFoundError(f"no images in {folder}")
    return paths


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, and of folders below it, links too."""
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name) for name in names)


def _read_ids(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    keys = path.read_text(encoding="utf-8-sig").split()
    if not keys:
        raise ValueError(f"the list {path} is empty")
    return keys


def _choose_labels(labels: Sequence[str]) -> str:
    """Return the first pattern of label files that has its folder."""
    patterns = [pattern if "{}" in pattern else f"{pattern}/{{}}.png" for pattern in labels]
    folders = [datasets_root() / pattern.partition("{}")[0] for pattern in patterns]
    for pattern, folder in zip(patterns, folders):
        if folder.is_dir():
            return pattern
    raise FileNotFoundError(f"no folder {' or '.join(map(str, folders))}")


def _check_files(paths: Iterable[Path], content: str) -> None:
    """Raise FileNotFoundError unless all files exist."""
    # Each folder is listed once: over a network, a look at every file is slow.
    paths = list(paths)
    names_in = {}
    for folder in {path.parent for path in paths}:
        names_in[folder] = set(os.listdir(folder)) if folder.is_dir() else set()

    missing = [path for path in paths if path.name not in names_in[path.parent]]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} {content} are missing, such as {missing[0]}")


def subsample(rows: Sequence, count: int) -> list:
    """Return `count` of the rows, evenly spaced, so that a quick look meets all of a dataset; 0: all."""
    if not 0 < count < len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


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
    class_words: Sequence[str | Sequence[str]] | None = None,
    shared_words: bool = False,
) -> None:
    """Register a folder of images and a folder of label PNGs as a zero-shot benchmark. Nothing is read from disk yet.

    Args:
        name: name in the catalog.
        images: folder with jpg, jpeg, png or webp files, or a pattern "folder/{}suffix" where {} is an image's ID,
            which may have slashes. Relative to DETECTRON2_DATASETS, or absolute; so are labels and ids.
        labels: folder of PNGs named by ID, or a pattern. If there are several, the first that has its folder is used.
        classes: names of the classes in the order of the labels; also the words to look for.
        background: whether the first class is the background; the model is never asked for its name.
        ids: text file of the IDs that belong to the benchmark; None: all images of the folder.
        label_map: value in the label file -> index of `classes` or `ignore_label`; None: values are these already.
        ignore_label: value of the pixels that count nowhere.
        colors: RGB of each class for pictures.
        prepare: the command that makes the data, for the error when it is missing.
        title: a short name for tables.
        num_images: how many images there should be; several where more than one count is in use.
        class_words: the words to look for in place of the names, a word or a list for each class; the background's,
            which are the first, may be left out.
        shared_words: whether a word may stand for several classes, of which the first then has it.

    Raises:
        ValueError: a name or a word stands for two labels, or there are words for more or fewer classes.
    """
    source = Source(f"Dataset '{name}'")
    check_class_words([[word] for word in classes], source)
    if class_words is not None:
        class_words = as_lists(class_words)
        _check_words(class_words, classes, background, shared_words, source)
    label_patterns = [labels] if isinstance(labels, str) else list(labels)

    def load() -> list[dict]:
        try:
            return list_pairs(images, label_patterns, ids)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Dataset '{name}': {error}. Looked below DETECTRON2_DATASETS={datasets_root()}. "
                f"To prepare it: {prepare}"
            ) from None
        except ValueError as error:
            raise ValueError(f"Dataset '{name}': {error}.") from None

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
        shared_words=shared_words,
    )
    if class_words is not None:
        MetadataCatalog.get(name).class_words = class_words


def _check_words(
    class_words: Sequence[Sequence[str]], classes: Sequence[str], background: bool, shared_words: bool, source: Source
) -> None:
    if background and len(class_words) == len(classes) - 1:  # without the background's
        classes, background, source = classes[1:], False, source._replace(first=1)
    check_class_words(class_words, source, background, shared_words)
    check_fits_classes(class_words, classes, source, background, shared_words)


def benchmark_names() -> list[str]:
    """List the registered benchmarks."""
    return [name for name in DatasetCatalog.list() if MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE]


def benchmark_classes(name: str) -> tuple[list[ClassWords], bool | list[str]]:
    """Return the words of the classes of a registered dataset, each word once, and its background.

    Returns:
        the word or the words of each class; and whether there is a background besides, or its words.

    Raises:
        ValueError: there is no such dataset, or it has no class words.
    """
    if name not in DatasetCatalog.list():
        raise ValueError(f"there is no benchmark '{name}'; there are {', '.join(benchmark_names())}.")
    if not has_classes(name):
        raise ValueError(f"the dataset '{name}' has no class words; benchmarks such as shapes_val have.")

    classes, background = dataset_classes(name)
    return leave_to_first(classes), background


def class_legend(dataset_name: str) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Return the names and RGB colors of a dataset's classes, then of ignored pixels: in the order of LabelMapper."""
    metadata = MetadataCatalog.get(dataset_name)
    colors = metadata.get("stuff_colors") or distinct_colors(len(metadata.stuff_classes))
    return [*metadata.stuff_classes, "ignored"], [*colors, (200, 200, 200)]


def register_benchmark_folder(folder: str, name: str | None = None) -> str:
    """Register a folder that holds images/, labels/ (PNGs of the same names) and classes.txt as a benchmark.

    classes.txt (UTF-8) has a class a line, in the order of the label values from 0: its name, and, after commas or
    semicolons, further words for it. If the first name is "background", it is the background. The label value 255 is
    ignored.

    Args:
        folder: absolute, or relative to the working directory.
        name: name in the catalog; None: the folder's path as it is given.

    Returns:
        the name in the catalog.

    Raises:
        FileNotFoundError: there is no classes.txt.
        ValueError: classes.txt is not as read_class_words needs it, or has more than 255 lines; or the name is taken.
    """
    name = name or str(folder)
    path = Path(folder).resolve()
    words_file = path / "classes.txt"
    if not words_file.is_file():
        raise FileNotFoundError(
            f"Dataset '{name}': no file {words_file}. A folder that is a benchmark holds images/, labels/ (PNGs of the "
            "same names) and classes.txt (a class a line, in the order of the label values)."
        )

    class_words = read_class_words(words_file)
    classes = class_names(class_words)
    if len(classes) > 255:
        raise ValueError(f"Dataset '{name}': {len(classes)} classes; the label value 255 is ignored, so 255 is most.")
    if name in DatasetCatalog.list():
        raise ValueError(f"There is a dataset '{name}' already; give the folder another name.")

    # The background's name is no word to look for; its further words are
    background = classes[0] == BACKGROUND
    if background:
        words_of_background = class_words.pop(0)[1:]
        if words_of_background:
            class_words.insert(0, words_of_background)

    register_benchmark(name, str(path / "images"), str(path / "labels"), classes, background, class_words=class_words)
    return name


# ---------------------------------------------------------------------------------- what comes with the project


def _read_json(path: str) -> dict:
    return json.loads((ASSETS / path).read_text(encoding="utf-8"))


def _register_table() -> None:
    """Register the eight benchmarks of the unified protocol, two large ones, and train splits for model selection."""
    for name, entry in _read_json("benchmarks.json").items():
        # Read the classes: names with colors, or a list of words
        colors = {BACKGROUND: entry["background"]} if "background" in entry else {}
        for file in entry.get("classes", ()):
            colors |= _read_json(f"classes/{file}.json")
        class_words = None
        if "words" in entry:
            class_words = read_class_words(ASSETS / "words" / entry["words"], shared_words=True)

        ignore_label = entry.get("ignore_label", 255)
        register_benchmark(
            name,
            entry["images"],
            entry["labels"],
            list(colors) if class_words is None else unique_names(class_words),
            BACKGROUND in colors,
            ids=entry.get("ids"),
            label_map=parse_rule(entry["rule"], ignore_label) if "rule" in entry else None,
            ignore_label=ignore_label,
            colors=list(colors.values()),
            prepare=f"tcl-d2 prepare {entry['prepare']}",
            title=entry["title"],
            num_images=entry["num_images"],
            class_words=class_words,
            shared_words=class_words is not None,
        )


def _register_lvis() -> None:
    """Register LVIS v1 as a benchmark of 1,203 classes."""
    # Label files hold category IDs, and 0 where nothing is annotated. 255 is a class.
    ignore_label = 65535
    categories = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    label_map = {0: ignore_label} | {category["id"]: k for k, category in enumerate(categories)}

    register_benchmark(
        "zeroshot_lvis_val",
        images="coco/{}.jpg",
        labels="lvis/semantic/{}.png",
        ids="lvis/semantic/val.txt",
        classes=[category["name"].replace("_", " ") for category in categories],
        label_map=label_map,
        ignore_label=ignore_label,
        prepare="tcl-d2 prepare lvis",
        title="LVIS",
        num_images=(19809,),
    )


def _register_shapes() -> None:
    """Register the small world: benchmarks with and without background, and with stuff; labeled scenes to train on.

    Of the labeled scenes, the base classes alone are labeled in a second dataset: pixels of the others are ignored.
    """
    objects = shapes.OBJECTS
    everything = shapes.OBJECTS + shapes.GROUNDS
    things = range(len(objects))
    grounds = range(len(objects), len(everything))
    base = [name for name in everything if name not in shapes.NOVEL]
    base_map = {k: base.index(name) if name in base else 255 for k, name in enumerate(everything)}

    variants = {
        "shapes_val": ("val", (BACKGROUND, *objects), True, {k: k + 1 for k in things} | {k: 0 for k in grounds}),
        "shapes_objects_val": ("val", objects, False, {k: k for k in things} | {k: 255 for k in grounds}),
        "shapes_stuff_val": ("val", everything, False, None),
        "shapes_sem_seg_train": ("labeled", everything, False, None),
        "shapes_base_sem_seg_train": ("labeled", base, False, base_map),
    }
    for name, (folder, classes, background, label_map) in variants.items():
        register_benchmark(
            name,
            f"shapes/{folder}/images",
            f"shapes/{folder}/labels",
            classes,
            background,
            label_map=label_map,
            prepare="tcl-d2 prepare shapes",
        )


_register_table()
_register_lvis()
_register_shapes()
