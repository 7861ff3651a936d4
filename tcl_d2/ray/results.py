"""The results of a shard: labels as PNG in a .tar, or rows of a parquet file, and beside them a JSON, its record."""

import glob
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..segmentation import Segmentation
from ..utils.files import replacing, stat_file
from .segmenter import FIELDS, to_table
from .shards import Shard

Result = tuple[str, Segmentation | OSError | ValueError]
_ROWS_AT_ONCE = 256  # in memory, and in a group of a parquet file's rows


class ShardResults:
    """The folder of results: NAME.tar or NAME.parquet of each shard, whole or not at all, and then its record.

    The record, NAME.json, has the digests of the shard's files and of the settings, the number of "images", and the
    "broken" ones by name with what is wrong. A shard is done if that is true, and its results have the recorded size.
    """

    def __init__(self, folder: Path, format: str, settings: str):
        """Take a digest of all that results depend on beside the pictures."""
        self.folder = folder
        self.format = format
        self._settings = settings

    def read(self, shard: Shard) -> dict | None:
        """Return the record of a shard that is done; None for another."""
        try:
            record = json.loads(self._path(shard, "json").read_bytes())
        except (OSError, ValueError):
            return None
        results = stat_file(self._path(shard, self.format)) or [None]
        facts = {**self._facts(shard), "bytes": results[0]}
        is_done = isinstance(record, dict) and all(record.get(key) == value for key, value in facts.items())
        return record if is_done else None

    def check_free(self, shards: Iterable[Shard]) -> None:
        """Raise a ValueError if a file of others lies where results go."""
        there = set(os.listdir(self.folder))
        for path in (self._path(shard, suffix) for shard in shards for suffix in ("json", self.format)):
            if path.name in there:
                raise ValueError(f"{path} is no result of an earlier run: move it, or give another folder")

    def remove(self, shard: Shard) -> None:
        """Remove the results of an earlier run."""
        for suffix in ("json", self.format):  # without its record, a result counts for nothing
            self._path(shard, suffix).unlink(missing_ok=True)

    def write(self, shard: Shard, results: Iterable[Result]) -> dict:
        """Write the results of a shard as they come, and return its record."""
        record = {**self._facts(shard), "images": 0, "broken": {}}

        def counted() -> Iterator[Result]:
            for name, result in results:
                if isinstance(result, Exception):
                    record["broken"][name] = str(result)
                record["images"] += not isinstance(result, Exception)
                yield name, result

        with replacing(self._path(shard, self.format)) as unfinished:
            WRITERS[self.format](unfinished, counted())
            record["bytes"] = unfinished.stat().st_size
        with replacing(self._path(shard, "json")) as unfinished:
            unfinished.write_text(json.dumps(record, indent=1))
        return record

    def count_lost(self, shard: Shard) -> int:
        """Count the workers that were lost in this run while they wrote this shard: they leave unfinished files."""
        return sum(1 for _ in self.folder.glob(f".{glob.escape(self._path(shard, self.format).name)}.*.tmp"))

    def _path(self, shard: Shard, suffix: str) -> Path:
        return self.folder / f"{shard.name}.{'tar' if suffix == 'png' else suffix}"

    def _facts(self, shard: Shard) -> dict[str, str]:
        return {"source": shard.source, "settings": self._settings}


def write_png(path: Path, results: Iterable[Result]) -> None:
    """Write a .tar of NAME_labels.png and NAME.json, as Segmentation.save makes them, of all pictures but broken ones.

    One file, and not a folder of a hundred thousand: it comes to its place in one step on every file system.
    """
    with tarfile.open(path, "w") as tar:
        for name, result in results:
            if isinstance(result, Segmentation):
                areas = json.dumps(result.describe(), indent=1).encode()
                for ending, content in (("_labels.png", result.encode_labels()), (".json", areas)):
                    header = tarfile.TarInfo(name + ending)  # of no time and no owner: equal results are equal files
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))


def write_parquet(path: Path, results: Iterable[Result]) -> None:
    """Write a row for each picture: its name and FIELDS; a broken one has its error."""
    schema = pa.schema({"name": pa.string(), **FIELDS})
    results = iter(results)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while rows := list(islice(results, _ROWS_AT_ONCE)):
            # File names need not be UTF-8, which parquet has alone
            names = [name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name, _ in rows]
            writer.write_table(to_table({"name": pa.array(names, pa.string())}, [result for _, result in rows]))


WRITERS: dict[str, Callable[[Path, Iterable[Result]], None]] = {"png": write_png, "parquet": write_parquet}
