"""Webdataset shards: finding, counting and reading them.

A shard is a .tar on this disk, at an address (https://...), on the Hugging Face hub (hf://datasets/OWNER/NAME/FILE), or
the output of a command (pipe:COMMAND). A shard on the web is streamed, never stored.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import braceexpand
from huggingface_hub import get_token, hf_hub_url
from webdataset.gopen import gopen

from ...utils.http_stream import PAUSES, HTTPStream, UnreadableAddress, is_web_page
from ..dataset_files import glob_files, subsample
from .shard_samples import BROKEN_TAR, iterate_headers, open_tar

CHECK_PAUSES = (1, 2, 4)  # as PAUSES, but before a training
_CHUNK = 1 << 20  # bytes
_MAX_COUNTED = 8  # shards whose headers are counted where nothing says what they hold
_HUB_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


# --------------------------------------------------------------------------------------------- finding them


def is_remote(path: str) -> bool:
    """Return whether a path is an address or a command."""
    return re.match(r"pipe:|\w+://", path) is not None


def expand_shards(patterns: str | list[str], root: Path) -> list[str]:
    """List shards: brace patterns ({00000..00331}) are spelled out, globs (*) match files on disk, relative to `root`.

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


@cache
def check_address(shard: str) -> None:
    """Look at a shard on the web once; UnreadableAddress if it is not there. Commands are not tried."""
    if shard.startswith("pipe:"):
        return
    with _open_address(shard, CHECK_PAUSES) as stream:
        if is_web_page(stream):
            raise UnreadableAddress(shard, "the site sent a web page in place of the file")


# --------------------------------------------------------------------------------------------- counting pairs


def count_pairs(shards: list[str], num_published: int | None = None) -> list[float]:
    """Return the number of pairs of each shard.

    It is that of _info.json (webdataset's and timm's) or of img2dataset's NAME_stats.json beside the shards. Without
    them, some of the shards on this disk are counted. Shards whose number remains unknown get the mean of these,
    or an equal share of `num_published`.

    Raises:
        OSError: such a file cannot be reached; names it.
        ValueError: such a file is broken, or nothing says what the shards hold.
    """
    files = [shard for shard in shards if not shard.startswith("pipe:")]
    counts = {}
    expected = "'splits' with 'filenames' and 'shard_lengths'"
    for folder in {os.path.dirname(file) for file in files}:
        counts |= _read_count(f"{folder}/_info.json", _parse_info, expected) or {}
    counts = {shard: counts[shard] for shard in shards if shard in counts}

    # img2dataset writes statistics of all shards or of none: the web is not asked for each of a thousand
    unknown = [file for file in files if file not in counts]
    if unknown and (not is_remote(unknown[0]) or _read_statistics(unknown[0]) is not None):
        with ThreadPoolExecutor(16) as pool:
            found = zip(unknown, pool.map(_read_statistics, unknown))
            counts |= {shard: count for shard, count in found if count is not None}

    on_disk = [file for file in unknown if file not in counts and os.path.isfile(file)]
    counted = {file: _count_images(file, os.stat(file).st_mtime_ns) for file in subsample(on_disk, _MAX_COUNTED)}
    counts |= counted
    if not counts and not num_published:
        raise ValueError(
            f"its number of pairs is unknown: beside {shards[0]} there is no _info.json and no *_stats.json. Give "
            "num_samples to register_webdataset"
        )
    alike = list((counted or counts).values()) or [(num_published or 0) / len(shards)]
    mean = sum(alike) / len(alike)
    return [counts.get(shard, mean) for shard in shards]


def _parse_info(path: str, info: Any) -> dict[str, float]:
    folder = os.path.dirname(path)
    splits = [zip(split["filenames"], split["shard_lengths"]) for split in info["splits"].values()]
    return {f"{folder}/{name}": float(length) for split in splits for name, length in split}


def _read_statistics(shard: str) -> int | None:
    path = shard.removesuffix(".tar") + "_stats.json"
    return _read_count(path, lambda _, content: int(content["successes"]), "an object with a number 'successes'")


def _read_count(path: str, parse: Callable[[str, Any], Any], expected: str) -> Any:
    """Parse a JSON file or address; None where there is none."""
    if not is_remote(path) and not os.path.isfile(path):
        return None
    text = _fetch(path) if is_remote(path) else Path(path).read_bytes()
    if text is None:
        return None
    try:
        return parse(path, json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is broken ({error!r}): expected JSON, {expected}. Get it again, or give num_samples to "
            "register_webdataset"
        ) from None


@cache
def _fetch(address: str) -> bytes | None:
    try:
        with _open_address(address, CHECK_PAUSES) as stream:
            return stream.read()
    except UnreadableAddress as error:
        if error.status in (403, 404):  # stores whose content cannot be listed say 403 of what is not there
            return None
        raise


@cache
def _count_images(path: str, modified: int) -> int:
    """Count the images in a shard, up to where it is broken; `modified`, its time of change, tells versions apart."""
    count = 0
    with suppress(*BROKEN_TAR), open_shard(path) as tar:  # a training counts it among the unreadable shards
        for has_image in iterate_headers(tar):
            count += has_image
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
        stream = cast(BinaryIO, gopen(shard))
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
    """Read a command's output to its end, where it says whether it has failed."""
    try:
        while stream.read(_CHUNK):
            pass
        stream.close()
    except OSError:
        raise UnreadableAddress(shard, f"the command ended with status {stream.status}") from None


def _open_address(address: str, pauses: Iterable[float]) -> io.BufferedReader:
    """Open an address on the web or the hub, the latter with the user's token (HF_TOKEN) if there is one."""
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
