"""The endless, shuffled, seeded stream of a dataset's pairs, split over processes and their loader workers."""

import itertools
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator

from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from ..utils.http_stream import UnreadableAddress
from ..utils.images import IMAGE_SUFFIXES, BrokenSample
from .shards import open_shard

logger = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------- broken samples


class SkipCounter:
    """Counts the samples that were skipped, by reason; logs the first ones, then each power of ten."""

    def __init__(self):
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, message: str) -> None:
        """Count a sample that was skipped for a reason of a few words; `message` says more of it."""
        self.counts[reason] += 1
        count = self.counts[reason]
        is_power_of_ten = count == 10 ** int(math.log10(count))
        if count <= 3 or is_power_of_ten:
            logger.warning("Skipped a sample (%s: %d so far in this worker): %s", reason, count, message)

    def __str__(self) -> str:
        return ", ".join(f"{reason}: {count}" for reason, count in self.counts.most_common()) or "no samples"


def _convert_tar_sample(sample: dict) -> dict:
    """Convert webdataset's sample to the mapper's; BrokenSample unless it has one image and one caption."""
    name = f"{sample['__url__']}/{sample['__key__']}"
    image = _get_member(sample, IMAGE_SUFFIXES, name, "image")
    if not image:  # a file of zero bytes
        raise BrokenSample("no image", name)
    caption = _get_member(sample, (".txt",), name, "caption")
    return {"image_bytes": image, "captions": [caption], "key": name}


def _get_member(sample: dict, suffixes: tuple[str, ...], name: str, content: str) -> bytes:
    """Return a sample's file with one of these suffixes.

    webdataset ends a sample's key at the first dot: the file `my.photo.png` has the key `my` and the rest `photo.png`.
    So a file with the whole rest as its suffix comes first; otherwise the one file whose last suffix fits.
    """
    exact = [suffix[1:] for suffix in suffixes if suffix[1:] in sample]
    members = exact[:1] or [member for member in sample if member.endswith(suffixes)]
    if not members:
        raise BrokenSample(f"no {content}", name)
    if len(members) > 1:
        raise BrokenSample(f"several {content}s", name, ", ".join(members))
    return sample[members[0]]


# --------------------------------------------------------------------------------------------- rows


def read_dataset(name: str) -> list[dict]:
    """Return the rows of a registered dataset; ValueError if they have no samples."""
    rows = DatasetCatalog.get(name)
    if count_samples(rows) <= 0:
        raise ValueError(
            f"Dataset '{name}' has no samples: it has no rows, or the counts of its shards (`num_samples`, or "
            "'successes' in img2dataset's *_stats.json) sum to 0."
        )
    return rows


def count_samples(rows: list[dict]) -> float:
    """Return the number of samples; an image with several captions counts once."""
    return sum(_num_samples(row) for row in rows)


def _num_samples(row: dict) -> float:
    return row.get("num_samples", 1)  # a row that is no shard is one sample


def _skip_rows(rows: list[dict], num_samples: float) -> list[dict]:
    """Leave out the first rows, as many as hold at most `num_samples` together."""
    num_passed = 0
    for index, row in enumerate(rows):
        num_passed += _num_samples(row)
        if num_passed > num_samples:
            return rows[index:]
    return []


# --------------------------------------------------------------------------------------------- the stream


def _open_shards(rows: list[dict], handle_error: Callable[[Exception], bool]) -> Iterator[dict]:
    """Open shards one after the other, as webdataset's readers take them."""
    for row in rows:
        try:
            with open_shard(row["shard"]) as stream:
                yield {"url": row["shard"], "stream": stream}
        except OSError as error:
            handle_error(error)


class ImageTextStream(IterableDataset):
    """Endless samples of one dataset: a worker's share of them, in another order each epoch.

    The workers are the loader processes of all training processes. They share an epoch by this rule:

    - The order of the rows is drawn from the seed and the epoch, and is the same for all workers.
    - Of N workers, each takes every N-th row.
    - If there are fewer shards than workers, all workers read all shards, and each keeps every N-th sample.
    - Each worker then shuffles the samples of its shards within a buffer.

    So each sample of an epoch comes to exactly one worker.
    """

    def __init__(
        self, name: str, rows: list[dict], mapper: Callable[[dict], dict], buffer: int, seed: int, start: int = 0
    ):
        """Describe a stream; nothing is read yet.

        Args:
            name: name of the dataset, for messages and the order.
            rows: rows of its catalog entry: shards, or images with captions.
            mapper: makes of a sample what the model takes.
            buffer: samples from which the next one is drawn (of shards; other rows are shuffled as a whole).
            seed: the same seed gives the same samples in the same order.
            start: samples of all workers to leave out at the beginning, whole epochs included. Shards are left out as
                a whole.
        """
        self.name = name
        self.rows = rows
        self.mapper = mapper
        self.buffer = buffer
        self.seed = seed
        self.start = start
        self._has_shards = "shard" in rows[0]

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()  # None without loader processes: the training process itself is the worker
        workers_per_rank = info.num_workers if info else 1
        local_worker = info.id if info else 0
        worker = comm.get_rank() * workers_per_rank + local_worker
        return self.iterate_worker(worker, comm.get_world_size() * workers_per_rank)

    def iterate_worker(self, worker: int, num_workers: int) -> Iterator[dict]:
        """Yield the samples of one of `num_workers` workers, epoch after epoch.

        Raises:
            RuntimeError: a whole epoch gave nothing; says why.
        """
        skipped = SkipCounter()
        epoch_size = max(1, int(count_samples(self.rows)))
        first_epoch, skip_samples = divmod(self.start, epoch_size)

        for epoch in itertools.count(first_epoch):
            num_yielded = 0
            for sample in self._read_epoch(epoch, worker, num_workers, skip_samples, skipped):
                try:
                    mapped = self._map_sample(sample)
                except BrokenSample as error:
                    skipped.add(error.reason, str(error))
                    continue
                num_yielded += 1
                yield mapped

            # The rest of an epoch that was begun in the middle may be empty.
            is_whole_epoch = skip_samples == 0
            if is_whole_epoch and num_yielded == 0:
                raise RuntimeError(
                    f"Dataset '{self.name}': a whole epoch of worker {worker + 1} of {num_workers} gave no usable "
                    f"sample ({skipped}). Check the data, or use fewer processes and workers than it has samples."
                )
            skip_samples = 0

    def _read_epoch(
        self, epoch: int, worker: int, num_workers: int, skip_samples: int, skipped: SkipCounter
    ) -> Iterator[dict]:
        """Read a worker's samples of an epoch, without the first `skip_samples` of all workers together."""
        # Shuffle the rows; all workers draw the same order
        order_rng = random.Random(f"{self.seed} {self.name} {epoch}")
        rows = order_rng.sample(self.rows, len(self.rows))
        if not self._has_shards:
            return iter(_skip_rows(rows[worker::num_workers], skip_samples // num_workers))

        # Read this worker's shards; or all shards, and keep this worker's samples
        has_shard_per_worker = len(rows) >= num_workers
        if has_shard_per_worker:
            skip_samples //= num_workers
            samples = self._read_shards(_skip_rows(rows[worker::num_workers], skip_samples), skipped)
        else:
            samples = self._read_shards(_skip_rows(rows, skip_samples), skipped)
            samples = itertools.islice(samples, worker, None, num_workers)

        # Shuffle the samples within a buffer
        worker_rng = random.Random(f"{self.seed} {self.name} {epoch} {worker} {skip_samples}")
        return shuffle(self.buffer, initial=min(self.buffer, 100), rng=worker_rng)(samples)

    def _read_shards(self, rows: list[dict], skipped: SkipCounter) -> Iterator[dict]:
        """Read the samples of shards one after the other; a shard that cannot be read further is counted.

        A shard on the web that cannot be reached is an OSError: it will be there again, and a training that is resumed
        then draws the samples of an uninterrupted one.
        """

        def skip_shard(error: Exception) -> bool:
            if isinstance(error, UnreadableAddress):
                raise OSError(
                    f"Dataset '{self.name}': the shard {error.address} cannot be read, also after further tries: "
                    f"{error.reason}. --resume goes on when it can be read again."
                ) from None
            skipped.add("unreadable shard", str(error))
            return True

        files = tar_file_expander(_open_shards(rows, skip_shard), handler=skip_shard)
        return group_by_keys(files, handler=skip_shard)

    def _map_sample(self, sample: dict) -> dict:
        """Map a sample as it was read to what the model takes; BrokenSample if it cannot be used."""
        if self._has_shards:
            sample = _convert_tar_sample(sample)
        return self.mapper(sample)
