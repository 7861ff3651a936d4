"""OUTPUT_DIR: it is made, kept to one run of each purpose, and cleared of what killed writers left."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from detectron2.utils import comm

from ..utils.files import remove_unfinished

logger = logging.getLogger(__name__)


@contextmanager
def output_folder(path: str, purpose: str) -> Iterator[None]:
    """Make OUTPUT_DIR, and keep other runs of the same purpose out of it until the block ends.

    The main process holds a lock, which the system frees however that process ends; the others wait until it has it.
    One run of each purpose, "training" or "evaluation", may use a folder.

    Raises:
        ValueError: the folder cannot be written, or another run has it.
    """
    lock = None
    if comm.is_main_process():
        lock = _open_lock(path, purpose)
        _acquire(lock, path, purpose)
        for folder in (Path(path), *Path(path).glob("inference/**/")):
            remove_unfinished(folder)
    comm.synchronize()

    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _open_lock(path: str, purpose: str) -> TextIO:
    if not path:
        raise ValueError("OUTPUT_DIR is empty: give a folder for logs, checkpoints and results")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        return Path(path, f".{purpose}.lock").open("a+")
    except OSError as error:
        raise ValueError(f"OUTPUT_DIR '{path}' is no folder that can be written: {error}") from None


def _acquire(lock: TextIO, path: str, purpose: str) -> None:
    try:
        # Loader workers may outlive a killed training for seconds: they do not inherit this lock, as they would flock's
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise ValueError(
            f"OUTPUT_DIR '{path}' is taken by another {purpose} ({holder}), whose files would be mixed with this one's:"
            " wait until it ends, or give another OUTPUT_DIR"
        ) from None
    except OSError as error:  # some network file systems have no locks
        logger.warning(
            "OUTPUT_DIR '%s' cannot be locked (%s): make sure that no other %s uses it", path, error, purpose
        )

    # Leave a name for others that want it
    lock.truncate(0)
    print(f"process {os.getpid()} on {socket.gethostname()}", file=lock, flush=True)
