"""The shared parts of `tcl-d2 prepare`: bringing files into place, converting labels, checking the result."""

import io
import os
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..utils.errors import list_problems
from ..utils.files import path_within, replacing
from ..utils.images import BrokenSample, as_array, is_leftover, read_image
from .dataset_files import walk_files
from .labels import LabelMapper, read_label

SHARED_MEMORY = 1 << 20  # bytes for the locks of a pool of processes
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
_CHUNK = 1 << 20  # bytes
_ADVICE = "if the labels were renumbered, bring the release's own files"


# -------------------------------------------------------------------------------------- bringing files into place


class Member(NamedTuple):
    """A file of a source: its path there, its size in bytes, and a function that puts it at a path."""

    name: str
    size: int
    bring: Callable[[Path], object]


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Turn any error while an archive is read into a ValueError that names it."""
    try:
        yield
    except RuntimeError as error:  # encrypted, or of a method that zipfile does not know
        advice = "unpack it by other means and give its folder, or get it again"
        raise ValueError(f"{source} cannot be unpacked ({error}): {advice}") from None
    except Exception as error:  # the readers of a damaged archive raise many types, some without a text
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(f"{source} is broken, or no archive ({reason}): get it again") from None


def members(source: Path) -> Iterator[Member]:
    """Yield the files of a folder, a zip or a tar archive; of any other file, the file itself.

    Files outside archives are linked, not copied. Leftovers of other systems are skipped.

    Raises:
        FileNotFoundError: there is no such file or folder, or it may not be read.
        ValueError: the archive is broken, also when a member is brought; names it.
    """
    if not os.access(source, os.R_OK):
        raise FileNotFoundError(f"no file or folder {source} that can be read")

    suffix = source.suffix.lower()
    if suffix in _ARCHIVES and not source.is_dir():
        with _reading(source):
            yield from _zip_members(source) if suffix == ".zip" else _tar_members(source)
        return
    for path in walk_files(source.resolve()) if source.is_dir() else [source.absolute()]:
        yield Member(path.as_posix(), path.stat().st_size, partial(os.symlink, path.resolve()))


def _zip_members(source: Path) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not is_leftover(info.filename):
                size, read = info.file_size, partial(archive.read, info)
                yield Member(info.filename, size, partial(_unpack, source, read, size))


def _tar_members(source: Path) -> Iterator[Member]:
    with tarfile.open(source) as archive:
        # The checksum of a compressed archive stands at its end, which tarfile does not read
        is_compressed = not isinstance(archive.fileobj, io.BufferedReader)
        while is_compressed and archive.fileobj.read(_CHUNK):
            pass

        for info in archive:
            if info.isfile() and not is_leftover(info.name):
                read = cast(IO[bytes], archive.extractfile(info)).read
                yield Member(info.name, info.size, partial(_unpack, source, read, info.size))

        # tarfile takes an archive that was cut between two files for a whole one
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")


def _unpack(source: Path, read: Callable[[], bytes], size: int, target: Path) -> None:
    with _reading(source):
        data = read()
        if len(data) != size:
            raise EOFError("it ends within a file")
    target.write_bytes(data)


def bring(sources: Iterable[Path], pattern: str, folder: Path, keys: set[str] | None = None) -> None:
    """Put the files of `sources` that match a pattern into a folder, unless they are there with the same size.

    Args:
        sources: archives, folders or files.
        pattern: regular expression for the end of a file's path; its group "path" is the path below `folder`.
        keys: stems of the files to bring; None: all.

    Raises:
        ValueError: a path leads out of the folder, or two files of a source have the same; names them.
    """
    expression = re.compile(f"(?:^|/){pattern}$")
    for source in sources:
        names = {}
        for member in tqdm(members(source), desc=f"reading {source.name}", unit="file", mininterval=1):
            match = expression.search(member.name)
            if match is None or (keys is not None and Path(match["path"]).stem not in keys):
                continue

            # Which of two files counts, nobody can tell
            target = path_within(folder, match["path"], source)
            if target in names:
                raise ValueError(f"{source} has both {names[target]} and {member.name}: give the right one alone")
            names[target] = member.name

            if not target.exists() or target.stat().st_size != member.size:
                with replacing(target) as unfinished:
                    member.bring(unfinished)


# ----------------------------------------------------------------------------------------------- converting labels


def convert(function: Callable, jobs: Sequence, processes: int, title: str) -> list:
    """Run `function` on each job in several processes, with a progress bar; return the results in order.

    Args:
        function: takes a job; sent to each process once, with its bound arguments (functools.partial).
        title: of the progress bar, and for the error.

    Raises:
        ValueError: some jobs failed with an OSError or ValueError; lists them, after all others are done.
    """
    results, problems = [], []  # a problem is an exception
    with Pool(processes, _Task.set, (function,)) as pool:
        for result in tqdm(pool.imap(_Task.attempt, jobs), total=len(jobs), desc=title, mininterval=1):
            if isinstance(result, Exception):
                problems.append(result)
            else:
                results.append(result)

    if problems:
        raise ValueError(f"{len(problems)} of {len(jobs)} failed ({title}):\n" + list_problems(problems))
    return results


class _Task:
    """The function that a process of `convert` runs."""

    function: Callable

    @classmethod
    def set(cls, function: Callable) -> None:
        cls.function = staticmethod(function)

    @classmethod
    def attempt(cls, job: object) -> object:
        try:
            return cls.function(job)
        except (OSError, ValueError) as error:
            return error


def save_label(label: np.ndarray, path: Path) -> None:
    """Write values [H, W], uint8 or uint16, as a gray PNG, or as TIFF if the path ends in .tif; whole or not at all."""
    options = {"format": "TIFF", "compression": "tiff_deflate"} if path.suffix == ".tif" else {"format": "PNG"}
    with replacing(path) as unfinished:
        Image.fromarray(label).save(unfinished, **options)


def is_whole(path: Path) -> bool:
    """Return whether a label file, or an image (.jpg), is there and can be read to its end."""
    try:
        as_array(path) if path.suffix == ".jpg" else read_label(str(path))
    except (OSError, BrokenSample):
        return False
    return True


# ---------------------------------------------------------------------------------------------- checking the result


def check(names: Sequence[str], processes: int) -> bool:
    """Read every image and label of benchmarks, print counts and problems, and return whether there are none.

    Images are decoded; labels must have their size, and only values that the release has. A complete dataset must also
    have the values required of it: both find renumbered labels. Files shared by benchmarks are read once.

    Raises:
        FileNotFoundError: files are missing.
    """
    # List the pairs of files, each with the benchmarks that use it
    rows = {name: DatasetCatalog.get(name) for name in names}
    names_by_pair = defaultdict(list)
    for name in names:
        for row in rows[name]:
            names_by_pair[row["file_name"], row["sem_seg_file_name"]].append(name)

    # Check the files, their number, and their values together
    jobs = list(names_by_pair.items())
    problems, values = [], defaultdict(set)
    for (_, users), (faults, label_values) in zip(jobs, convert(_check_pair, jobs, processes, "checking")):
        problems += faults
        for name in users:
            values[name] |= label_values
    problems += filter(None, (_check_whole(name, len(rows[name]), values[name]) for name in names))

    # Print the result
    for name in names:
        print(f"{name}: {len(rows[name])} images with labels")
    if problems:
        print(f"{len(problems)} problems:\n{list_problems(problems)}")
    return not problems


def _check_whole(name: str, num_images: int, values: set[int]) -> str:
    """Return what is wrong with the number of a benchmark's images, or with the values of all its labels."""
    metadata = MetadataCatalog.get(name)
    if metadata.num_images and num_images not in metadata.num_images:
        return f"{name} has {num_images} images; expected {' or '.join(map(str, metadata.num_images))}"

    lacking = sorted(set(metadata.get("required_values", ())) - values)
    if not lacking:
        return ""
    return f"{name}: no label has {_list_values(lacking)}, which the release has: {_ADVICE}"


def _check_pair(job: tuple[tuple[str, str], list[str]]) -> tuple[list[str], set[int]]:
    """Check an image and its label for each benchmark that uses them; return problems, and the label's values."""
    (image_path, label_path), names = job
    problems = []

    # Read both files
    size = None
    try:
        size = read_image(image_path, image_path).size[::-1]
    except BrokenSample as error:
        problems.append(f"Image {image_path} could not be read: {error.detail}")
    try:
        label = read_label(label_path)
    except OSError as error:
        return [*problems, str(error)], set()

    # Compare their sizes, and look up the values
    if size not in (None, label.shape):
        problems.append(f"{label_path} is {label.shape}, but {image_path} is {size} (height, width)")
    values = set(np.unique(label).tolist())
    for name in names:
        try:
            LabelMapper.of(name)(label, label_path)
            unknown = sorted(values.difference(MetadataCatalog.get(name).get("release_values", values)))
            if unknown:
                what = f"Label {label_path} has {_list_values(unknown)}, which no label of the release has"
                problems.append(f"{name}: {what}: {_ADVICE}")
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return problems, values


def _list_values(values: Sequence[int]) -> str:
    return f"the value{'s'[: len(values) > 1]} {', '.join(map(str, values[:20]))}"
