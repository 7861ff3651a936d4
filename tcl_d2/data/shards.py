"""Webdataset shards: where they lie, how many pairs they hold, and how they are read.

A shard is a .tar on this disk, at an address (https://...), on the Hugging Face hub (hf://datasets/OWNER/NAME/FILE), or
what a command writes (pipe:COMMAND). A shard of the web is read as it comes, and never stored.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import braceexpand
from huggingface_hub import get_token, hf_hub_url
from webdataset.gopen import gopen

from ..utils import http_stream
from ..utils.files import is_web_page
from ..utils.http_stream import HTTPStream, UnreadableAddress
from .dataset_files import glob_files, subsample
from .shard_samples import BROKEN_TAR, iterate_headers, open_tar

PAUSES = http_stream.PAUSES  # seconds before each further try while training
CHECK_PAUSES = (1, 2, 4)  # the same before a training
_CHUNK = 1 << 20  # bytes
_MAX_COUNTED = 8  # shards that are counted where nothing says what they hold; counting reads a whole file's heads
_HUB_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


# --------------------------------------------------------------------------------------------- finding them


def is_remote(path: str) -> bool:
    """Return whether a path is an address or a command, and no file's path."""
    return re.match(r"pipe:|\w+://", path) is not None


def expand_shards(patterns: str | list[str], root: Path) -> list[str]:
    """List shards: brace patterns ({00000..00331}) are spelled out, globs (*) match what is on disk.

    Args:
        patterns: paths, addresses or commands.
        root: folder that relative paths start from.

    Raises:
        ValueError: an address that cannot be read, or with a glob.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    shards = []
    for pattern in patterns:
        for spelled in braceexpand.braceexpand(pattern):
            if is_remote(spelled):
                _check_form(spelled)
                shards.append(spelled)
                continue
            path = root / spelled  # an absolute pattern stays as it is
            shards += map(str, glob_files(path.parent, path.name) if "*" in path.name else [path])
    return shards


def _check_form(address: str) -> None:
    if address.startswith("pipe:"):
        return
    if not (address.startswith(("http://", "https://")) or _HUB_ADDRESS.fullmatch(address)):
        raise ValueError(
            f"'{address}' is no address that can be read: expected https://..., hf://datasets/OWNER/NAME/FILE, or "
            f"pipe:COMMAND, such as 'pipe:aws s3 cp {address} -'"
        )
    if "*" in address:
        raise ValueError(f"'{address}': * matches files on this disk alone; name the shards as in {{0000..0575}}")


def check_address(shard: str) -> None:
    """Look at a shard on the web once; UnreadableAddress if it is not there. A command is not tried."""
    if not shard.startswith("pipe:"):
        _look_once(shard)


@cache
def _look_once(address: str) -> None:
    with _open_address(address, CHECK_PAUSES) as stream:
        if is_web_page(stream):
            raise UnreadableAddress(address, "the site sent a web page in place of the file")


# --------------------------------------------------------------------------------------------- counting pairs


def count_pairs(shards: list[str]) -> dict[str, float]:
    """Count the pairs of shards, as files beside them say, or else as the shards on this disk hold.

    The files are img2dataset's NAME_stats.json, or one _info.json for all (webdataset's and timm's). Of many shards on
    this disk some are counted, and the others taken for alike.

    Returns:
        count by shard; of shards on the web without such a file, none.

    Raises:
        OSError, ValueError: such a file is broken, or cannot be reached; names it.
    """
    counts = _read_infos(shards)
    counts |= _read_statistics([shard for shard in shards if shard not in counts])
    counts |= _count_on_disk([shard for shard in shards if shard not in counts and not is_remote(shard)])
    return counts


def _read_infos(shards: list[str]) -> dict[str, float]:
    """Read the counts that _info.json has of the shards in its folder."""
    counts = {}
    for folder in {os.path.dirname(shard) for shard in shards if not shard.startswith("pipe:")}:
        path = f"{folder}/_info.json"
        if (info := _read_json(path)) is None:
            continue
        try:
            for split in info["splits"].values():
                lengths = zip(split["filenames"], split["shard_lengths"])
                counts |= {f"{folder}/{name}": float(length) for name, length in lengths}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            expected = "'splits' with 'filenames' and 'shard_lengths'"
            raise ValueError(f"{path} is broken ({error!r}): expected {expected}") from None
    return {shard: counts[shard] for shard in shards if shard in counts}


def _read_statistics(shards: list[str]) -> dict[str, float]:
    """Read the counts that img2dataset's files beside the shards have."""
    shards = [shard for shard in shards if not shard.startswith("pipe:")]
    if not shards or (is_remote(shards[0]) and _read_json(_statistics_path(shards[0])) is None):
        return {}  # not asked for each of a thousand shards: img2dataset writes them of all

    with ThreadPoolExecutor(16) as pool:
        contents = list(pool.map(_read_json, map(_statistics_path, shards)))
    return {shard: _successes(shard, content) for shard, content in zip(shards, contents) if content is not None}


def _statistics_path(shard: str) -> str:
    return shard.removesuffix(".tar") + "_stats.json"


def _successes(shard: str, content: Any) -> float:
    try:
        return int(content["successes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{_statistics_path(shard)} is broken ({error!r}): expected a JSON object with a number 'successes', as "
            "img2dataset writes it"
        ) from None


def _read_json(path: str) -> Any:
    """Return the content of a JSON file or address; None where there is none."""
    text = _fetch(path) if is_remote(path) else _read_file(path)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error!r}): expected JSON with a number 'successes' or 'splits'") from None


def _read_file(path: str) -> bytes | None:
    return Path(path).read_bytes() if os.path.isfile(path) else None


@cache
def _fetch(address: str) -> bytes | None:
    try:
        with _open_address(address, CHECK_PAUSES) as stream:
            return stream.read()
    except UnreadableAddress as error:
        if error.status in (403, 404):  # stores whose content cannot be listed say 403 of what is not there
            return None
        raise


def _count_on_disk(shards: list[str]) -> dict[str, float]:
    """Count the images in some of the shards, and take the others for alike."""
    paths = [shard for shard in shards if os.path.isfile(shard)]
    counted = {path: _count_images(path, os.stat(path).st_mtime_ns) for path in subsample(paths, _MAX_COUNTED)}
    mean = sum(counted.values()) / max(1, len(counted))
    return {path: counted.get(path, mean) for path in paths}


@cache
def _count_images(path: str, modified: int) -> int:
    """Count the images in a shard; in a broken one, those before the break.

    Args:
        path: of the shard.
        modified: time at which it was written; another one is counted anew.
    """
    count = 0
    try:
        with open_shard(path) as tar:
            for has_image in iterate_headers(tar):
                count += has_image
    except BROKEN_TAR:
        pass  # a training counts it among the unreadable shards
    return count


# --------------------------------------------------------------------------------------------- reading them


@contextmanager
def open_shard(shard: str) -> Iterator[tarfile.TarFile]:
    """Open a shard, to be read from its beginning to its end.

    Raises:
        UnreadableAddress: a shard on the web or a command fails, also after further tries; the block, or its end.
        BROKEN_TAR: a shard on this disk cannot be opened, or is no tar.
    """
    if shard.startswith("pipe:"):
        stream = gopen(shard)
        try:
            with open_tar(stream, is_file=False) as tar:
                yield tar
        except BROKEN_TAR:
            _finish_command(shard, stream)  # its failure is the cause
            raise
        _finish_command(shard, stream)

    elif is_remote(shard):
        with _open_address(shard, PAUSES) as stream, open_tar(stream, is_file=False) as tar:
            yield tar

    else:
        with open(shard, "rb") as stream, open_tar(stream, is_file=True) as tar:
            yield tar


def _finish_command(shard: str, stream: Any) -> None:
    """Read a command's output to its end: only then does it say whether it has failed."""
    try:
        while stream.read(_CHUNK):
            pass
        stream.close()
    except OSError:
        raise UnreadableAddress(shard, f"the command ended with status {stream.status}") from None


def _open_address(address: str, pauses: Iterable[float]) -> io.BufferedReader:
    """Open an address on the web or the hub, there with the user's token (HF_TOKEN) where there is one."""
    headers = {}
    url = address
    if match := _HUB_ADDRESS.fullmatch(address):
        repository, revision, filename = match.groups()
        url = hf_hub_url(repository, filename, repo_type="dataset", revision=revision)
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"

    try:
        return io.BufferedReader(HTTPStream(url, headers, tuple(pauses)), _CHUNK)
    except UnreadableAddress as error:
        hint = ": is the dataset private? Log in to the hub, or set HF_TOKEN" if error.status in (401, 403) else ""
        raise UnreadableAddress(address, error.reason + hint, error.status) from None
