"""What a stopped evaluation goes on from: the confusion matrix of the images done so far, on disk."""

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from detectron2.utils import comm
from torch import nn

from ..utils.files import replacing


class EvaluationProgress:
    """The images that the processes of an evaluation have done, and their confusion matrix, in a file a process.

    Attributes:
        done: IDs of the images that are done already.
        matrix: their confusion matrix, int64 [K, K]; None if there are none.
    """

    def __init__(self, folder: Path, fingerprint: str, resume: bool, period: float = 30.0):
        """
        Args:
            fingerprint: of all that results depend on (see `fingerprint`); files with another one are not used.
            resume: whether to go on from what is in the folder; else it is removed.
            period: seconds between writes.
        """
        self.folder = folder
        self.fingerprint = fingerprint
        self.period = period
        self.done: list[str] = []
        self.matrix: np.ndarray | None = None
        self._file = folder / f"progress_{comm.get_rank()}.npz"
        self._saved = time.monotonic()
        self._latest: tuple[np.ndarray, list[str]] | None = None
        if resume:
            self._load()
        comm.synchronize()  # all have read
        if comm.is_main_process():
            if self.done:  # in one file from now on; those of other processes hold images that it has too
                self.save(self.matrix, self.done)
            for path in self._files():
                if not self.done or path != self._file:
                    path.unlink()
        comm.synchronize()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("progress_*.npz"))

    def _load(self) -> None:
        for path in self._files():
            try:
                with np.load(path, allow_pickle=False) as file:
                    same = str(file["fingerprint"]) == self.fingerprint
                    matrix, done = file["matrix"], file["done"].tolist()
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue  # not ours, or broken: these images are done again
            if same and not set(done) & set(self.done):
                self.matrix = matrix if self.matrix is None else self.matrix + matrix
                self.done += done

    def save_now_and_then(self, matrix: np.ndarray, done: list[str]) -> None:
        """Save what this process has done, as `save`, unless that was done a moment ago."""
        self._latest = matrix, done
        if time.monotonic() - self._saved > self.period:
            self.save(matrix, done)

    def save_latest(self) -> None:
        """Save what the last call of save_now_and_then was given; it may have grown since."""
        if self._latest is not None:
            self.save(*self._latest)

    def save(self, matrix: np.ndarray, done: list[str]) -> None:
        """Writes what this process has done: int64 [K, K], and the IDs of its images."""
        with replacing(self._file) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, matrix=matrix, done=np.array(done, dtype=str), fingerprint=self.fingerprint)
        self._saved = time.monotonic()


def digest_weights(model: nn.Module) -> str:
    """A digest of all weights of a model."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()))
    return digest.hexdigest()


def stat_files(dataset_dicts: Iterable[Mapping[str, object]]) -> list[list[int] | None]:
    """Return the size in bytes and the time of change in ns of each image and label file; None for one that is gone."""
    paths = (row[key] for row in dataset_dicts for key in ("file_name", "sem_seg_file_name") if key in row)
    return [_stat(path) for path in paths]


def _stat(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def fingerprint(weights: str, **facts: Mapping | list) -> str:
    """A digest of a model's weights (see digest_weights) and of facts (JSON) that results depend on."""
    text = json.dumps({"weights": weights, **facts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
