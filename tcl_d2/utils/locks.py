"""Locks that keep other runs out of a folder."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from .files import remove_unfinished

logger = logging.getLogger(__name__)


@contextmanager
def locked_folder(folder: str | Path, purpose: str, setting: str) -> Iterator[None]:
    """Make a folder, keep other runs of the same purpose out, and remove the unfinished files of killed ones.

    The system frees the lock however this process ends. Forked children do not have it.

    Args:
        purpose: the kind of run, such as "training"; runs of different purposes may share a folder.
        setting: the option or key that names the folder, for errors.

    Raises:
        ValueError: it is no folder that can be written, or another run has it.
    """
    name = f"{setting} '{folder}'"
    with ExitStack() as stack:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(Path(folder, f".{purpose}.lock").open("a+b", buffering=0))
            _acquire(lock, name, purpose)
        except OSError as error:
            raise ValueError(f"{name} is no folder that can be written: {error}") from None
        remove_unfinished(folder)
        yield


def _acquire(lock: FileIO, folder: str, purpose: str) -> None:
    try:
        # Loader workers may outlive a killed training for seconds: they do not inherit this lock, as they would flock's
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        lock.seek(0)
        holder = lock.read().decode(errors="replace").strip() or "unknown"
        raise ValueError(
            f"{folder} is taken by another {purpose} ({holder}), whose files would be mixed with this one's: wait "
            "until it ends, or give another folder"
        ) from None
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s): make sure that no other %s uses it", folder, error, purpose)

    # Leave a name for others that want it
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
