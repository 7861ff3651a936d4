"""Registering zero-shot benchmarks to evaluate on."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...segmentation.drawing import distinct_colors
from ...words.datasets import has_classes
from ...words.files import Source, check_class_words, check_fits_classes, read_class_words
from ...words.parsing import BACKGROUND, as_lists, class_names
from ...words.vocabulary import ClassWords, dataset_classes, leave_to_first
from ..dataset_files import check_files, datasets_root, find_images, loading, read_ids

EVALUATOR_TYPE = "zero_shot_sem_seg"  # names the evaluator, see evaluation.EVALUATOR_REGISTRY


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
        image_paths = {key: root / images.format(key) for key in read_ids(root / ids)}
        check_files(image_paths.values(), "images")

    # The first pattern of labels that has its folder
    patterns = [pattern if "{}" in pattern else f"{pattern}/{{}}.png" for pattern in labels]
    folders = [root / pattern.partition("{}")[0] for pattern in patterns]
    pattern = next((pattern for pattern, folder in zip(patterns, folders) if folder.is_dir()), None)
    if pattern is None:
        raise FileNotFoundError(f"no folder {' or '.join(map(str, folders))}")
    label_paths = {key: root / pattern.format(key) for key in image_paths}
    check_files(label_paths.values(), "labels")

    return [
        {"file_name": str(image_paths[key]), "sem_seg_file_name": str(label_paths[key]), "image_id": key}
        for key in sorted(image_paths)
    ]


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
        images: folder with jpg, jpeg, png or webp files, or a pattern "folder/{}suffix" where {} is an image's ID,
            which may have slashes. Relative to DETECTRON2_DATASETS, or absolute; so are labels and ids.
        labels: folder of PNGs named by ID, or a pattern. If there are several, the first that has its folder is used.
        classes: names of the classes in the order of the labels; also the words to look for.
        background: whether the first class is the background; the model is never asked for its name.
        ids: text file of the IDs that belong to the benchmark; None: all images of the folder.
        label_map: value in the label file -> index of `classes` or `ignore_label`; None: values are these already.
        ignore_label: value of ignored pixels.
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

    labels = [labels] if isinstance(labels, str) else labels
    register_rows(
        name,
        partial(list_pairs, images, labels, ids),
        prepare,
        stuff_classes=list(classes),
        stuff_colors=[tuple(color) for color in colors or distinct_colors(len(classes))],
        background=background,
        label_map=label_map,
        ignore_label=ignore_label,
        title=title or name,
        num_images=tuple(num_images),
        class_words=class_words,
        shared_words=shared_words,
    )


def register_rows(name: str, list_rows: Callable[[], list[dict]], prepare: str, **metadata: object) -> None:
    """Register a benchmark by a function that lists its rows; for the metadata see register_benchmark.

    With `read_label` among these, a function from a row's `sem_seg_file_name` to the values of its label, integers
    [H, W], labels need not be files of their own.
    """
    DatasetCatalog.register(name, partial(_load, name, prepare, list_rows))
    MetadataCatalog.get(name).set(evaluator_type=EVALUATOR_TYPE, **metadata)


def _check_words(
    class_words: Sequence[Sequence[str]], classes: Sequence[str], background: bool, shared_words: bool, source: Source
) -> None:
    if background and len(class_words) == len(classes) - 1:  # without the background's
        classes, background, source = classes[1:], False, source._replace(first=1)
    check_class_words(class_words, source, background, shared_words)
    check_fits_classes(class_words, classes, source, background, shared_words)


def _load(name: str, prepare: str, list_rows: Callable[[], list[dict]]) -> list[dict]:
    with loading(name, prepare):
        return [{**row, "dataset_name": name} for row in list_rows()]  # by which the model knows the words


def benchmark_names() -> list[str]:
    """List the registered benchmarks."""
    return [name for name in DatasetCatalog.list() if MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE]


def benchmark_classes(name: str) -> tuple[Sequence[ClassWords], bool | list[str]]:
    """Return the words of a registered dataset's classes, each word once, and its background: whether, or its words.

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
    """Register a folder of images/, labels/ (PNGs of the same names) and classes.txt as a benchmark; return its name.

    classes.txt (UTF-8) has a class a line, in the order of the label values from 0: its name, and, after commas or
    semicolons, further words for it. If the first name is "background", it is the background. The label value 255 is
    ignored. The folder is absolute, or relative to the working directory; as given, it is the default name.

    Raises:
        FileNotFoundError: there is no classes.txt.
        AssertionError: the name is taken.
        ValueError: classes.txt is not as read_class_words needs it.
    """
    name = name or str(folder)
    path = Path(folder).resolve()
    words_file = path / "classes.txt"
    if not words_file.is_file():
        raise FileNotFoundError(
            f"Dataset '{name}': no file {words_file}. A folder that is a benchmark holds images/, labels/ (PNGs of the "
            "same names) and classes.txt (a class a line, in the order of the label values); or CVAT's masks with "
            "their labelmap.txt, or labelme's JSON files beside their pictures."
        )
    class_words = read_class_words(words_file)
    classes = class_names(class_words)

    # The background's name is no word to look for; its further words are
    background = classes[0] == BACKGROUND
    if background:
        words_of_background = class_words[0][1:]
        class_words[:1] = [words_of_background] if words_of_background else []

    register_benchmark(name, str(path / "images"), str(path / "labels"), classes, background, class_words=class_words)
    return name
