"""What a stopped evaluation goes on from: the images done so far and their statistics, on disk."""

import hashlib
import json
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from detectron2.utils import comm

from ..utils.files import replacing, stat_file

Statistics = Mapping[str, np.ndarray]
_PREFIX = "statistics."


class EvaluationProgress:
    """The images that the processes of an evaluation have done, and their statistics, in a file a process.

    Attributes:
        done: files of the images that were done before.
        statistics: what was summed over these images, arrays by name.
    """

    def __init__(self, folder: Path, fingerprint: str, resume: bool, period: float = 30.0):
        """Choose where to keep the progress; `restore` reads what is there.

        Args:
            folder: for the files.
            fingerprint: of all that results depend on (see `fingerprint`); files with another one are not used.
            resume: whether to go on from what is in the folder; else it is removed.
            period: seconds between writes.
        """
        self.folder = folder
        self.fingerprint = fingerprint
        self.resume = resume
        self.period = period
        self.done: list[str] = []
        self.statistics: dict[str, np.ndarray] = {}
        self._file = folder / f"progress_{comm.get_rank()}.npz"
        self._saved = time.monotonic()
        self._latest: tuple[Statistics, list[str]] | None = None

    # ------------------------------------------------------------------------------------ reading

    def restore(self, empty: Statistics) -> None:
        """Read what was done before; every process must call it. The folder is left with one file, or none.

        Args:
            empty: the statistics of no image. A file with other names, shapes or dtypes is not used.
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

    def save_now_and_then(self, statistics: Statistics, done: list[str]) -> None:
        """Save what this process has done, as `save`, unless that was done a moment ago."""
        self._latest = statistics, done
        if time.monotonic() - self._saved > self.period:
            self.save(statistics, done)

    def save_latest(self) -> None:
        """Save what the last call of save_now_and_then was given; it may have grown since."""
        if self._latest is not None:
            self.save(*self._latest)

    def save(self, statistics: Statistics, done: list[str]) -> None:
        """Write what this process has done: its statistics, and the files of its images."""
        arrays = {f"{_PREFIX}{name}": array for name, array in statistics.items()}
        with replacing(self._file) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, file_names=np.array(done, dtype=str), fingerprint=self.fingerprint, **arrays)
        self._saved = time.monotonic()


def _layout(statistics: Statistics) -> dict[str, tuple]:
    return {name: (array.shape, array.dtype) for name, array in statistics.items()}


# ---------------------------------------------------------------------------------------- what results depend on


def stat_files(dataset_dicts: Iterable[Mapping[str, object]]) -> list[list[int] | None]:
    """Return the size in bytes and the time of change in ns of each image and label file; None for one that is gone."""
    keys = ("file_name", "sem_seg_file_name")
    paths = (dataset_dict[key] for dataset_dict in dataset_dicts for key in keys if key in dataset_dict)
    return [stat_file(path) for path in paths]


def fingerprint(weights: str, **facts: Mapping | list) -> str:
    """Return a digest of weights (see utils.tensors.digest_weights) and of facts (JSON) that results depend on."""
    text = json.dumps({"weights": weights, **facts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
