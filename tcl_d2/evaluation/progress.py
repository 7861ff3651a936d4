"""The images that an evaluation has done, whose statistics are kept on disk, and those that it has skipped."""

import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from ..utils.files import replacing, stat_file

logger = logging.getLogger(__name__)
Statistics = Mapping[str, np.ndarray]
PERIOD = 30.0  # seconds between writes
_PREFIX = "statistics."


class EvaluationProgress:
    """The images that the processes of an evaluation have done, and their statistics, in a file per process.

    Attributes:
        done: images of an earlier run, by file name.
        statistics: sums over these images, arrays by name.
    """

    def __init__(self, folder: Path, fingerprint: str, resume: bool):
        """Choose where to keep the progress; `restore` reads an earlier one.

        Args:
            fingerprint: of all that results depend on; files with another one are not used.
            resume: whether to go on from the files in the folder, which are removed otherwise.
        """
        self.folder = folder
        self.fingerprint = fingerprint
        self.resume = resume
        self.done: list[str] = []
        self.statistics: dict[str, np.ndarray] = {}
        self._file = folder / f"progress_{comm.get_rank()}.npz"
        self._saved = time.monotonic()

    # ------------------------------------------------------------------------------------ reading

    def restore(self, empty: Statistics) -> None:
        """Read the progress of an earlier run, and merge its files into one; every process must call it.

        Files whose statistics differ in name, shape or dtype from `empty`, those of no image, are not used.
        """
        self.done = []
        self.statistics = {name: array.copy() for name, array in empty.items()}
        if self.resume:
            for path in self._files():
                self._add_file(path)
        comm.synchronize()  # all have read

        if comm.is_main_process():
            self._keep_one_file()
        comm.synchronize()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("progress_*.npz"))

    def _add_file(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                fingerprint, done = str(file["fingerprint"]), file["file_names"].tolist()
                names = [name for name in file.files if name.startswith(_PREFIX)]
                statistics = {name.removeprefix(_PREFIX): file[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # not ours, or broken: its images are done again

        is_same = fingerprint == self.fingerprint and _layout(statistics) == _layout(self.statistics)
        if is_same and not set(done) & set(self.done):
            self.done += done
            for name, array in statistics.items():
                self.statistics[name] += array

    def _keep_one_file(self) -> None:
        # In one file from now on; the files of other processes hold images that it has too.
        if self.done:
            self.save(self.statistics, self.done)
        for path in self._files():
            if not self.done or path != self._file:
                path.unlink()

    # ------------------------------------------------------------------------------------ writing

    @property
    def is_due(self) -> bool:
        """Whether the last time of saving is more than PERIOD ago."""
        return time.monotonic() - self._saved > PERIOD

    def save(self, statistics: Statistics, done: list[str]) -> None:
        """Write the statistics of this process and the files of its images."""
        arrays: dict[str, Any] = {f"{_PREFIX}{name}": array for name, array in statistics.items()}
        arrays |= {"file_names": np.array(done, dtype=str), "fingerprint": self.fingerprint}
        with replacing(self._file) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)
        self._saved = time.monotonic()


def _layout(statistics: Statistics) -> dict[str, tuple]:
    return {name: (array.shape, array.dtype) for name, array in statistics.items()}


class SkippedImages:
    """Counts the images that this process skips because their files are broken; each is logged once."""

    def __init__(self):
        self._paths: set[str] = set()

    def add(self, path: str, reason: object) -> None:
        """Count an image by its file, and log the reason, unless it was counted before."""
        if path not in self._paths:
            self._paths.add(path)
            logger.warning("Image left out of the evaluation (%d so far): %s", len(self._paths), reason)

    def total(self) -> int:
        """Return the number of images that all processes have skipped; 0 off rank 0."""
        return sum(len(paths) for paths in comm.gather(self._paths))


# ---------------------------------------------------------------------------------------- what results depend on


def stat_files(dataset_dicts: Iterable[Mapping[str, Any]]) -> list[list[int] | None]:
    """Return the size in bytes and the time of change in ns of each image and label file; None for one that is gone.

    A label may be part of a file, FILE#PART.
    """
    keys = ("file_name", "sem_seg_file_name")
    paths = (dataset_dict[key] for dataset_dict in dataset_dicts for key in keys if key in dataset_dict)
    return [stat_file(path) or stat_file(path.rpartition("#")[0]) for path in paths]


def fingerprint(weights: str, **facts: Mapping | list) -> str:
    """Return a digest of a digest of weights, and of facts (as JSON) that results depend on."""
    text = json.dumps({"weights": weights, **facts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
