"""Registering pairs of image and caption to train on.

`DatasetCatalog.get(name)` gives a list of dicts: `{"shard": path or address, "num_samples": count}` for webdataset
shards, `{"file_name", "captions"}` for the rest. Nothing is read from disk before that.
"""

import csv
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n

from ...utils.files import open_path, path_within
from ..dataset_files import check_files, datasets_root, find_images, loading
from .shards import check_address, count_pairs, expand_shards, is_remote

# The `evaluator_type` in a training dataset's metadata, which no evaluator has: check_datasets tells by it what can be
# trained on from what can be evaluated on
TRAIN_ONLY_TYPE = "image_text"
_LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


def _register(name: str, load: Callable[[], list[dict]], prepare: str) -> None:
    DatasetCatalog.register(name, loading(name, prepare)(load))
    MetadataCatalog.get(name).set(evaluator_type=TRAIN_ONLY_TYPE)


def _warn(message: str) -> None:
    log_first_n(logging.WARNING, message, 2, name=__name__, key="message")  # when it is checked, and in the log


# ------------------------------------------------------------------------------------------- webdataset shards


def register_webdataset(
    name: str,
    shards: str | list[str],
    num_samples: int | None = None,
    prepare: str = "img2dataset",
    *,
    num_published: int | None = None,
) -> None:
    """Register webdataset shards in img2dataset's layout: per sample an image (jpg, jpeg, png, webp) and a txt.

    Files with the same name up to the first dot are a sample. With more dots in a name (`my.photo.png`) its last suffix
    counts; samples with several images or captions are skipped and counted.

    `DatasetCatalog.get(name)` raises FileNotFoundError if shards are missing, OSError if the first shard on the web
    cannot be read, and ValueError if the number of pairs is unknown.

    Args:
        shards: paths, brace patterns or globs, relative to DETECTRON2_DATASETS or absolute. Addresses
            ("https://...", "hf://datasets/OWNER/NAME/FILE.tar") and commands that write a shard ("pipe:COMMAND") may
            have braces too.
        num_samples: pairs in all, the dataset's share in a mixture; None: see count_pairs.
        prepare: how to get the shards, for the error when they are missing.
        num_published: pairs in the dataset when it was published. A warning says how many are left; it stands in for
            an unknown number.
    """

    def load() -> list[dict]:
        paths = _find_shards(shards)
        counts = [num_samples / len(paths)] * len(paths) if num_samples else count_pairs(paths, num_published)
        share = 100 * sum(counts) / (num_published or sum(counts) or 1)
        if num_published and abs(share - 100) > 1:
            count = f"about {sum(counts):,.0f} pairs, {share:.0f} % of the published {num_published:,}"
            _warn(f"Dataset '{name}' has {count}")
        return [{"shard": path, "num_samples": count} for path, count in zip(paths, counts)]

    _register(name, load, prepare)


def _find_shards(shards: str | list[str]) -> list[str]:
    """List shards; OSError unless those on this disk, and the first on the web, are there."""
    paths = expand_shards(shards, datasets_root())
    if not paths:
        raise FileNotFoundError(f"there are no shards {shards}")
    check_files([Path(path) for path in paths if not is_remote(path)], "shards")
    for path in list(filter(is_remote, paths))[:1]:
        check_address(path)
    return paths


# ------------------------------------------------------------------------------------------- COCO Captions


def register_coco_captions(
    name: str, json_file: str, image_root: str, prepare: str = "https://cocodataset.org"
) -> None:
    """Register COCO Captions, all captions of an image together; paths as register_caption_list's.

    `DatasetCatalog.get(name)` raises FileNotFoundError if a file or folder is missing, and ValueError if the JSON is no
    COCO Captions. `prepare` says how to get both, for the error when they are missing.
    """

    def load() -> list[dict]:
        annotations, images = datasets_root() / json_file, datasets_root() / image_root
        for path in (annotations, images):
            if not path.exists():
                raise FileNotFoundError(f"there is no {path}")
        try:
            rows = _read_coco_captions(annotations, images)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{annotations} is no COCO Captions file ({error!r})") from None
        check_files([Path(row["file_name"]) for row in rows], f"images of {annotations}")
        return rows

    _register(name, load, prepare)


def _read_coco_captions(json_file: Path, image_root: Path) -> list[dict]:
    content = json.loads(json_file.read_text(encoding="utf-8"))
    file_names = {image["id"]: image["file_name"] for image in content["images"]}
    captions = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["image_id"] not in file_names:
            raise ValueError(f"annotation {annotation.get('id')}: no image has the ID {annotation['image_id']}")
        captions[annotation["image_id"]].append(annotation["caption"])
    return [
        {"file_name": str(path_within(image_root, file_names[key], json_file)), "captions": texts}
        for key, texts in captions.items()
    ]


# ------------------------------------------------------------------------------------------- lists of pairs


def register_caption_list(
    name: str, path: str, image_root: str = "", image_column: str = "image", caption_column: str = "caption"
) -> None:
    """Register a list of pairs: .csv or .tsv with a head line, or .jsonl / .json with an object a line.

    Several lines may name one image; in JSON lines a caption may be a list of texts too. In CSV a text with commas,
    quotes or line ends stands in quotes, and quotes in it are doubled; in TSV quotes are characters like any other, so
    a text has no tabs and no line ends.

    `DatasetCatalog.get(name)` raises FileNotFoundError for a missing list or image, and ValueError for a list without
    rows, a missing column or a broken line.

    Args:
        path: the list, relative to DETECTRON2_DATASETS or absolute.
        image_root: folder that the list's image paths start from, and that has all its images, relative to
            DETECTRON2_DATASETS or absolute; "" for the list's own folder.
    """

    def load() -> list[dict]:
        file = datasets_root() / path
        if not file.is_file():
            raise FileNotFoundError(f"there is no list {file}")
        if file.suffix not in _LIST_SUFFIXES:
            raise ValueError(f"{file} must end in .csv, .tsv or .jsonl")

        root = datasets_root() / image_root if image_root else file.parent
        captions = _read_list(file, root, image_column, caption_column)
        if not captions:
            raise ValueError(f"{file} has no rows")
        _check_captions(name, [text for texts in captions.values() for text in texts], file)
        check_files(map(Path, captions), f"images of {file}")
        return [{"file_name": image, "captions": texts} for image, texts in captions.items()]

    _register(name, load, "write the list, and put its images there")


def _read_list(file: Path, root: Path, image_column: str, caption_column: str) -> dict[str, list[str]]:
    """Return the captions of each image; a ValueError names the row."""
    captions = defaultdict(list)
    row_number = 1
    try:
        for row in _read_rows(file):
            image, texts = _parse_row(row, image_column, caption_column)
            captions[str(path_within(root, image, ""))] += texts
            row_number += 1
    except ValueError as error:
        raise ValueError(f"row {row_number} of {file} {error}") from None
    return captions


def _read_rows(file: Path) -> Iterator[dict]:
    # Line ends are CSV's own, or \n alone: other characters that end lines of text (U+2028) may be in a caption.
    # Bytes that are not UTF-8 stay: such a caption is found when it is used.
    newline = "" if file.suffix in (".csv", ".tsv") else "\n"
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
        try:
            if file.suffix == ".csv":
                yield from csv.DictReader(lines, strict=True)  # not strict, an open quote would swallow rows
            elif file.suffix == ".tsv":
                yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                yield from map(_parse_object, filter(str.strip, lines))
        except csv.Error as error:
            raise ValueError(f"is broken: {error}; is a quote left open, or not doubled?") from None


def _parse_object(line: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    return row


def _parse_row(row: dict, image_column: str, caption_column: str) -> tuple[str, list[str]]:
    """Return the image's path and the captions of a row."""
    # Look for the columns
    if None in row:  # where csv.DictReader puts them: the caption may have been cut at an unquoted comma
        raise ValueError("has more fields than the head line has columns: quote a text that has the separator")
    for column in (image_column, caption_column):
        if row.get(column) is None:
            raise ValueError(f"has no '{column}'; it has {list(row)}")

    # Check their values
    image, texts = row[image_column], row[caption_column]
    texts = texts if isinstance(texts, list) else [texts]
    for column, values in ((image_column, [image]), (caption_column, texts)):
        for value in values:
            if not isinstance(value, str):
                raise ValueError(f"has a value of type {type(value).__name__} as '{column}', not text")
    return image, texts


def _check_captions(name: str, captions: list[str], file: Path) -> None:
    """Warn of captions that are not UTF-8, which are skipped in training; ValueError if all are."""
    broken = [text for text in captions if any("\ud800" <= character <= "\udfff" for character in text)]
    if broken:
        problem = (
            f"{len(broken)} of the {len(captions)} captions of {file} are not UTF-8, such as {broken[0]!r}: convert "
            "the file, as by iconv -f cp1252 -t utf-8"
        )
        if len(broken) == len(captions):
            raise ValueError(problem)
        _warn(f"Dataset '{name}': {problem}")


# ------------------------------------------------------------------------------------------- folders, and paths


def register_caption_folder(name: str, folder: str) -> None:
    """Register a folder of images, also in folders below it, whose captions lie beside them: NAME.jpg and NAME.txt.

    `DatasetCatalog.get(name)` raises FileNotFoundError if there is no such folder, or no image with a caption in it.
    Images without a caption are left out, with a warning. For millions of pairs, shards are faster. The folder is
    absolute, or relative to DETECTRON2_DATASETS.
    """

    def load() -> list[dict]:
        images = find_images(folder)
        rows, missing = [], []
        for path in sorted(images.values()):
            try:
                with open_path(str(path.with_suffix(".txt"))) as file:
                    caption = file.read().decode("utf-8-sig")
                rows.append({"file_name": str(path), "captions": [caption]})
            except (OSError, UnicodeDecodeError):
                missing.append(path.with_suffix(".txt"))

        problem = f"{len(missing)} of {len(images)} images have no caption in UTF-8, such as {[*missing, ''][0]}"
        if not rows:
            raise FileNotFoundError(problem)
        if missing:
            _warn(f"Dataset '{name}': {problem}: left out")
        return rows

    _register(name, load, "put a caption in NAME.txt beside each image NAME.jpg; shards are 'FOLDER/*.tar'")


def register_image_folder(name: str, folder: str) -> None:
    """Register a folder of images without captions, also in folders below it, for a dense head to train on.

    `DatasetCatalog.get(name)` raises FileNotFoundError if there is no such folder, or no image in it. The folder is
    absolute, or relative to DETECTRON2_DATASETS.
    """

    def load() -> list[dict]:
        return [{"file_name": str(path)} for path in sorted(find_images(folder).values())]

    _register(name, load, "put images into that folder")


def register_training_path(path: str, with_captions: bool = True) -> None:
    """Register pairs under their path as their name; FileNotFoundError if it is none of these.

    It is a .tar (also with braces or a glob), a .csv, .tsv or .jsonl, or a folder of images with captions, relative to
    the working directory or absolute; or the address or command of shards, as register_webdataset takes it.
    """
    if is_remote(path):
        register_webdataset(path, path)
        return

    absolute = os.path.abspath(path)
    if os.path.isdir(absolute):
        (register_caption_folder if with_captions else register_image_folder)(path, absolute)
    elif path.endswith(_LIST_SUFFIXES):
        register_caption_list(path, absolute)
    elif ".tar" in os.path.basename(path):
        register_webdataset(path, absolute, prepare="write them there, or correct the path")
    else:
        raise FileNotFoundError(
            f"Dataset '{path}' is not registered, and no path of pairs to train on: expected a folder of images with "
            "captions (NAME.jpg, NAME.txt), a list (.csv, .tsv, .jsonl), or shards (.tar); or of labels (docs/label.md)"
        )
