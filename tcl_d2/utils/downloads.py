"""Files by path or address: Detectron2's PathManager, with downloads that suit weights of hundreds of megabytes.

iopath's own handler starts over after a cut, confuses two hosts' files of one path, and keeps the web page that a site
may send in place of a file. The PathManager here has another handler; Detectron2's stays as it is.
"""

import logging
import os
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from detectron2.utils import file_io
from iopath.common.file_io import HTTPURLHandler, PathHandler, file_lock, get_cache_dir
from iopath.common.file_io import PathManager as PathManagerBase
from tqdm import tqdm

from .http_stream import HTTPStream, is_web_page

logger = logging.getLogger(__name__)

PAUSES = (1, 2, 4)  # seconds before each further try: who is offline waits some seconds for the error
_CHUNK = 1 << 20  # bytes


def local_weights(key: str, path: str) -> str:
    """Return the local path of a file of weights; `key` is the configuration's key that names it.

    Raises:
        OSError: there is no file, or it could not be downloaded; names the key, the address, the cache, and what to do.
    """
    try:
        local_path = PathManager.get_local_path(path)
    except OSError as error:
        name = PurePosixPath(urlsplit(path).path).name
        raise OSError(f"{key}: {error}: {key} /path/{name}") from None
    if not os.path.isfile(local_path):
        raise FileNotFoundError(f"{key}: there is no file '{path}'")
    return local_path


class DownloadHandler(HTTPURLHandler):
    """Handler of http(s)://, which downloads a file once, whole or not at all.

    One of several processes downloads, and the others wait for it.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://"]

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs) -> str:
        self._check_kwargs(kwargs)
        cached = cache_path(path, cache_dir)
        if force or not cached.is_file():
            with file_lock(str(cached)):
                if force or not cached.is_file():
                    download(path, cached)
        return str(cached)


def cache_path(address: str, cache_dir: str | None = None) -> Path:
    """Return the path of an address's downloaded file: HOST/PATH below `cache_dir`, or iopath's cache.

    That is $FVCORE_CACHE, or ~/.torch/iopath_cache.
    """
    parts = urlsplit(address)
    name = parts.netloc + parts.path + (f"?{parts.query}" if parts.query else "")
    return Path(get_cache_dir(cache_dir), *(part for part in name.split("/") if part not in ("", ".", "..")))


def download(address: str, path: Path) -> None:
    """Download a file; a download that was cut off before resumes where it stopped.

    Raises:
        OSError: it could not be downloaded, or the site sent a web page in its place; names both.
    """
    try:
        with HTTPStream(address, pauses=PAUSES) as stream:
            logger.info("Downloading %s to %s", address, path)
            unfinished = _write(stream, path)
            _check_content(unfinished, address)
            os.replace(unfinished, path)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise OSError(
            f"{address} is not in the cache ({path}; FVCORE_CACHE is the cache's folder) and could not be downloaded: "
            f"{reason}. Run once where the network reaches it, or get the file by other means and give its path"
        ) from None


def _write(stream: HTTPStream, path: Path) -> Path:
    """Append a stream to the unfinished file beside `path`, after what an earlier download left of this version."""
    # Find what is there already; without a version nobody knows what it is of
    unfinished = path.with_name(f".{path.name}.{zlib.crc32(stream.version.encode()):08x}.part")
    for other in path.parent.glob(f".{path.name}.*.part"):
        if other != unfinished or not stream.version:
            other.unlink()
    num_done = unfinished.stat().st_size if unfinished.exists() else 0

    # Write the rest
    stream.seek(num_done)
    progress = tqdm(total=stream.size, initial=num_done, unit="B", unit_scale=True, desc=path.name)
    with progress, unfinished.open("ab") as file:
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
            progress.update(len(chunk))
    return unfinished


def _check_content(unfinished: Path, address: str) -> None:
    """Remove an unfinished file, and raise OSError, if it is empty or an unexpected web page."""
    is_page_expected = urlsplit(address).path.endswith((".html", ".htm", ".xml", ".svg"))
    with unfinished.open("rb") as file:
        is_page = is_web_page(file) and not is_page_expected
    if is_page or unfinished.stat().st_size == 0:
        unfinished.unlink()
        raise OSError("the site sent a web page in place of the file" if is_page else "the file is empty")


class _Detectron2Handler(PathHandler):
    """Handler of all paths that Detectron2's PathManager knows, now or later."""

    def _get_supported_prefixes(self) -> list[str]:
        return [""]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return file_io.PathManager.get_local_path(path, force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return file_io.PathManager.open(path, mode, buffering, **kwargs)


PathManager = PathManagerBase()
PathManager.register_handler(DownloadHandler())
PathManager.register_handler(_Detectron2Handler())
