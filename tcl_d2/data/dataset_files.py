"""Where datasets lie, and the files of their folders."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from detectron2.utils.file_io import PathManager

from ..assets import FolderHandler
from ..utils.errors import named
from ..utils.files import leads_back, path_within
from ..utils.images import IMAGE_SUFFIXES, is_leftover

logger = logging.getLogger(__name__)


def datasets_root() -> Path:
    """Return the folder of the datasets: $DETECTRON2_DATASETS, or datasets/ in the working directory, as Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


PREFIX = "datasets://"  # of files below DETECTRON2_DATASETS as it is when a file is read
PathManager.register_handler(FolderHandler(PREFIX, datasets_root))


@contextmanager
def loading(dataset_name: str, prepare: str) -> Iterator[None]:
    """Name a dataset in errors; of missing files, also say where they were looked for and how to get them."""
    with named(f"Dataset '{dataset_name}'"):
        try:
            yield
        except FileNotFoundError as error:
            root = f"DETECTRON2_DATASETS={datasets_root()}"
            raise FileNotFoundError(f"{error}. Looked below {root}. To get it: {prepare}") from None


def find_images(images: str) -> dict[str, Path]:
    """Find the image files of a folder, or of a pattern 'folder/{}suffix', by their IDs: paths below it without suffix.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: two images have one ID.
    """
    head, _, tail = images.partition("{}")
    folder = datasets_root() / head
    suffixes = (tail.lower(),) if tail else IMAGE_SUFFIXES
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")

    paths = {}
    for path in walk_files(folder):
        suffix = next(filter(path.name.lower().endswith, suffixes), None)
        if suffix is not None:
            key = path.relative_to(folder).as_posix()[: -len(suffix)]
            if key in paths:
                raise ValueError(f"two images have the name '{key}', {paths[key]} and {path}; rename or remove one")
            paths[key] = path

    if not paths:
        raise FileNotFoundError(f"no images in {folder}")
    return paths


def read_ids(path: Path) -> list[str]:
    """Return the IDs of a list, none of which leads out of a folder as a file's name.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is empty, or an ID leads out of a folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    keys = path.read_text(encoding="utf-8-sig").split()
    if not keys:
        raise ValueError(f"the list {path} is empty")
    for key in keys:
        path_within(path.parent, key, path)
    return keys


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, following links, without leftovers of other systems.

    A link to a folder that it is in is skipped, with a warning.
    """
    for parent, folders, names in os.walk(folder, followlinks=True):
        paths = [Path(parent, name) for name in folders if not is_leftover(name)]
        loops = [path for path in paths if leads_back(path)]
        for path in loops:
            logger.warning("Skipped %s, a link to a folder that it is in", path)
        folders[:] = [path.name for path in paths if path not in loops]
        yield from (Path(parent, name) for name in names if not is_leftover(name))


def glob_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match a pattern, sorted, without leftovers of other systems."""
    return sorted(path for path in folder.glob(pattern) if not is_leftover(path.relative_to(folder).as_posix()))


def check_files(paths: Iterable[Path], content: str) -> None:
    """Raise FileNotFoundError unless all files exist."""
    # Each folder is listed once: over a network, a look at every file is slow.
    paths = list(paths)
    folders = {path.parent for path in paths}
    names_in = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    missing = [path for path in paths if path.name not in names_in[path.parent]]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} {content} are missing, such as {missing[0]}")


def rows_by_file_name(dataset_name: str, rows: Iterable[dict]) -> dict[str, dict]:
    """Return the rows of a dataset by their `file_name`; ValueError for one that two rows have."""
    by_file_name = {}
    for row in rows:
        if row["file_name"] in by_file_name:
            raise ValueError(
                f"Dataset '{dataset_name}' has two rows with the file_name {row['file_name']}; expected one."
            )
        by_file_name[row["file_name"]] = row
    return by_file_name


def subsample(rows: Sequence, count: int) -> list:
    """Return `count` of the rows, evenly spaced, so that a quick look covers a whole dataset; 0: all."""
    if not 0 < count < len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]
