"""Writing files whole or not at all, and telling web pages from files."""

import hashlib
import mmap
import os
import re
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

BLANK = "0" * 64  # stands for a file's SHA-256 in the file itself


def open_path(path: str) -> BinaryIO:
    """Open a local file to read it or, with Detectron2 installed, any path that `downloads.PathManager` knows.

    Raises:
        OSError: there is no such file, or it is a named pipe, a socket or a device, which may have no end.
    """
    is_file = os.path.isfile(path)
    if os.path.exists(path) and not is_file:
        raise OSError(f"'{path}' is no file, but a folder, a named pipe, a socket or a device")
    if is_file or find_spec("detectron2") is None:  # a local file needs no import of Detectron2, and with it torch
        return open(path, "rb")
    from .downloads import PathManager

    return PathManager.open(path, "rb")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write; it becomes `path` when the block ends, and is removed if the block fails.

    A missing folder is made. An OSError of the block that names no file, such as a full disk's, gets its name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path, os.getpid())
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        unfinished.unlink(missing_ok=True)


def path_within(root: str | Path, name: str, source: object) -> Path:
    """Join a root and a name from an archive, a list or a JSON file; links below the root are followed.

    Args:
        root: folder that the name must not lead out of.
        name: relative to the root, or absolute.
        source: where the name was read, for the error; "" if the caller says it.

    Raises:
        ValueError: the name leads out of the root, or has a ".."; names all three.
    """
    path = Path(root, name)
    if ".." in name.split("/") or (name.startswith("/") and not path.is_relative_to(root)):
        problem = f"{source} names {name!r}, which may lead out of {root}: expected a path below it, without '..'"
        raise ValueError(problem.lstrip())
    return path


def check_shared_memory(num_bytes: int, advice: str = "") -> None:
    """Check that processes can share this much memory; OSError says what to do.

    Otherwise they end with a message about a full disk or a missing file, or wait forever.
    """
    folder = "/dev/shm"
    free = shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    if sys.platform == "linux" and free < num_bytes:
        raise OSError(
            f"{folder}, through which processes share memory, has {free >> 20} MB free, but {num_bytes >> 20} are "
            f"needed: start the container with more (docker run --shm-size 8g, or --ipc host){advice}"
        )


def check_output(path: Path) -> None:
    """Check that a file can be written before its content is made; OSError or ValueError says why not.

    Its folder is made.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from None


def unfinished_path(path: Path, pid: int) -> Path:
    """Return the temporary path for `path` in a process of this host."""
    return path.with_name(f".{path.name}.{_host()}-{pid}.tmp")


def remove_unfinished(folder: str | Path) -> None:
    """Remove the temporary files of `replacing` that killed processes of this host left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        name = re.fullmatch(rf"\..+\.{_host()}-(\d+)\.tmp", path.name)
        if name is not None and not _is_running(int(name[1])):
            path.unlink(missing_ok=True)


def stat_file(path: str | Path) -> list[int] | None:
    """Return a file's size in bytes and time of change in ns; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def digest_file(path: Path, own: str = BLANK) -> str:
    """Return the SHA-256 of a file that is not empty; its `own`, if that stands in it, counts as BLANK."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(own.encode())
        with memoryview(content) as view:
            if start < 0:
                return hashlib.sha256(view).hexdigest()
            digest = hashlib.sha256(view[:start])
            digest.update(BLANK.encode())
            digest.update(view[start + len(BLANK) :])
    return digest.hexdigest()


def leads_back(path: Path) -> bool:
    """Return whether a path is a link to a folder that it is in."""
    return path.is_symlink() and path.is_dir() and any(map(path.samefile, path.absolute().parents))


def _host() -> str:
    """Return 8 letters for this host: other hosts' processes write to a shared disk too."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_running(pid: int) -> bool:
    with suppress(PermissionError):  # another user's process
        try:
            os.kill(pid, 0)  # signal 0 is never sent: the system only looks whether there is such a process
        except (ProcessLookupError, OverflowError):
            return False
    return True
