"""Shards of pictures, the units of work: a .tar, a parquet file, or so many picture files; and reading them."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.dataset_files import check_files
from ..data.pairs.shard_samples import BROKEN_TAR, read_samples
from ..data.pairs.shards import expand_shards, is_remote, open_shard
from ..utils.files import path_within, stat_file
from ..utils.http_stream import UnreadableAddress
from ..utils.images import BrokenSample

Picture = tuple[str, str | bytes | OSError | ValueError]  # a name, and a path, an address, the file's bytes or an error
_SUFFIX = re.compile(r"\.(tar(\.\w+)?|parquet)$", re.IGNORECASE)
_ROWS_AT_ONCE = 64  # of a parquet file


class Shard(NamedTuple):
    """A unit of work.

    Attributes:
        name: of its results; no other shard's.
        files: one .tar or parquet file or address; or picture files.
        names: of the pictures' results, of picture files alone.
        source: a digest of the names, sizes and times of the files.
    """

    name: str
    files: list[str]
    names: list[str]
    source: str


# ------------------------------------------------------------------------------------------- listing them


def is_shard(name: str) -> bool:
    """Return whether an input is a shard, or a pattern of shards."""
    return name.startswith("pipe:") or (_SUFFIX.search(name) is not None and not os.path.isdir(name))


def list_shards(patterns: Sequence[str], columns: Sequence[str]) -> list[Shard]:
    """List the .tar and parquet files of patterns, braces and globs.

    Args:
        columns: the parquet files' column of pictures and, if there is one, that of their names.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: two shards have one name, or a parquet file is damaged, on the web, or lacks a column.
    """
    files = expand_shards(list(patterns), Path())
    local = [os.path.abspath(file) for file in files if not is_remote(file)]
    check_files(map(Path, local), "shards")
    if empty := [pattern for pattern in patterns if not expand_shards(pattern, Path())]:
        raise FileNotFoundError(f"no shards in {', '.join(empty)}")

    tables = [file for file in files if file.endswith(".parquet")]
    if remote := list(filter(is_remote, tables)):
        raise ValueError(f"{remote[0]}: parquet files are read from this disk alone: download them first")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: _check_columns(file, columns), tables))

    names = [_shard_name(file) for file in files]
    twice = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if twice:
        raise ValueError(f"several shards are named '{twice[0]}': give each of them an --output of its own")
    files = [file if is_remote(file) else os.path.abspath(file) for file in files]
    return [Shard(name, [file], [], _digest([file], [])) for name, file in zip(names, files)]


def _shard_name(file: str) -> str:
    """Return the name of a file or address without suffix; of a command, that of the last .tar in it."""
    found = re.findall(r"([^/\s'\"=]+)\.(?:tar|parquet)\b", file, re.IGNORECASE)
    return found[-1] if found else hashlib.blake2b(file.encode(), digest_size=8).hexdigest()


def _check_columns(file: str, columns: Sequence[str]) -> None:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}") from None
    for column in columns:
        if column not in schema.names:
            raise ValueError(
                f"{file} has no column '{column}', but {', '.join(schema.names)}: name that of pictures, and that of "
                "their names, by --columns"
            )


def group_files(files: Mapping[Path, str], size: int) -> list[Shard]:
    """Group picture files, with the names of their results, into shards of `size`."""
    rows = [(os.path.abspath(path), name) for path, name in files.items()]
    groups = [rows[first : first + size] for first in range(0, len(rows), size)]
    shards = []
    for number, group in enumerate(groups):
        paths, names = map(list, zip(*group))
        shards.append(Shard(f"{number:05d}-of-{len(groups):05d}", paths, names, _digest(paths, names)))
    return shards


def _digest(files: Sequence[str], names: Sequence[str]) -> str:
    """Return a digest of files, their sizes and times, and names; of a file on the web, of its address alone."""
    facts = json.dumps([names, [[file, None if is_remote(file) else stat_file(file)] for file in files]])
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


# ------------------------------------------------------------------------------------------- reading them


def read_shard(shard: Shard, columns: Sequence[str]) -> Iterator[Picture]:
    """Yield the pictures of a shard in their order; a name twice, or one that leads out of a folder, is an error's.

    Raises:
        UnreadableAddress: a shard on the web cannot be read, or not to its end.
    """
    file, seen = shard.files[0], set()
    if shard.names:
        yield from zip(shard.names, shard.files)
        return
    for name, picture in _read_table(file, columns) if file.endswith(".parquet") else _read_tar(file):
        if name in seen:
            picture = BrokenSample("a name twice", f"{file}/{name}")
        seen.add(name)
        try:
            path_within("", name, file)
        except ValueError as error:
            picture = error
        yield name, picture


def _read_tar(file: str) -> Iterator[Picture]:
    """Yield the image of each sample of a .tar by its key; where it is broken, an error in the file's own name."""
    try:
        with open_shard(file) as tar:
            for sample in read_samples(tar, file):
                if sample.has_image():
                    key = sample.name.removeprefix(f"{file}/")
                    try:
                        yield key, sample.image()
                    except BrokenSample as error:
                        yield key, error
    except UnreadableAddress:
        raise
    except BROKEN_TAR as error:
        yield _shard_name(file), BrokenSample("unreadable shard", file, error)


def _read_table(file: str, columns: Sequence[str]) -> Iterator[Picture]:
    """Yield the pictures of a parquet file, named by a column or by their rows."""
    row = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=list(columns)):
            pictures, *names = (batch.column(column).to_pylist() for column in columns)
            for offset, picture in enumerate(pictures):
                name = str(names[0][offset]) if names else f"{row:09d}"
                row += 1
                yield name, _read_cell(picture, name, file)
    except (pa.ArrowException, OSError) as error:
        yield _shard_name(file), BrokenSample("unreadable shard", file, error)


def _read_cell(cell: object, name: str, file: str) -> bytes | str | OSError | ValueError:
    """Return a cell's bytes, address, or path below the table's folder, also where it has both as Hugging Face's do."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    if isinstance(cell, str) and cell.startswith(("http://", "https://")):
        return cell
    try:
        if not isinstance(cell, str):
            raise BrokenSample("no image", f"{file}/{name}", f"expected bytes, an address or a path, not {cell!r:.40}")
        return str(path_within(os.path.dirname(file), cell, file))
    except ValueError as error:
        return error
