"""The endless, shuffled, seeded stream of a dataset's pairs, split over processes and their loader workers."""

import itertools
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from detectron2.data import DatasetCatalog
from torch.utils.data import get_worker_info

from ...utils.http_stream import UnreadableAddress
from ...utils.images import BrokenSample
from .shard_samples import BROKEN_TAR, SORT_ADVICE, ShardSample, read_samples
from .shards import open_shard

logger = logging.getLogger(__name__)

UNREADABLE_SHARD = "unreadable shard"


# --------------------------------------------------------------------------------------------- broken samples


class SkipCounter:
    """Counts skipped samples by reason; logs the first ones, then each power of ten."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.last = ""  # the last message

    def add(self, reason: str, message: str) -> None:
        """Count a sample that was skipped for a reason of a few words, and perhaps log the message."""
        self.counts[reason] += 1
        self.last = message
        count = self.counts[reason]
        is_power_of_ten = count == 10 ** int(math.log10(count))
        if count <= 3 or is_power_of_ten:
            logger.warning("Skipped a sample (%s: %d so far in this worker): %s", reason, count, message)

    def count_samples(self) -> int:
        """Return the number of skips, without shards."""
        return self.counts.total() - self.counts[UNREADABLE_SHARD]

    def __str__(self) -> str:
        return ", ".join(f"{reason}: {count}" for reason, count in self.counts.most_common()) or "no samples"


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
    return sum(row.get("num_samples", 1) for row in rows)


def num_slots(row: dict) -> int:
    """Return a row's number of places in an epoch."""
    return max(1, round(count_samples([row])))


# --------------------------------------------------------------------------------------------- the stream


def loader_worker() -> tuple[int, int]:
    """Return this loader worker's index within its training process, and their number."""
    info = get_worker_info()  # None without loader processes: the training process itself is the worker
    return (info.id, info.num_workers) if info else (0, 1)


class Position(NamedTuple):
    """The place in a worker's samples from which to go on.

    Attributes:
        segment: index into the worker's segments of shards in this epoch, of the one in which the block begins.
        sample: number of the block's first sample in the shard.
        block: number of the block in the epoch.
        drawn: samples of the block that were drawn before, broken ones too.
    """

    epoch: int
    segment: int = 0
    sample: int = 0
    block: int = 0
    drawn: int = 0


@dataclass
class ImageTextStream:
    """Endless samples of one dataset: a worker's share of them, in another order each epoch.

    The workers are the loader processes of all training processes. They share an epoch by this rule:

    - The order of the rows is drawn from the seed and the epoch, and is the same for all workers.
    - Each worker takes a part of the samples in this order, all of about the same size. A part may begin and end within
      a shard.
    - Samples of shards are read in blocks, and each block is shuffled.

    So each sample of an epoch comes to exactly one worker. To go on in the middle, a worker passes over the beginning
    of one shard.

    Attributes:
        name: the dataset's, for messages and the order.
        rows: of its catalog entry: shards, or images with captions.
        mapper: turns a sample into the model's input.
        buffer: samples in a block (of shards; other rows are shuffled as a whole).
        seed: the same seed gives the same samples in the same order.
    """

    name: str
    rows: list[dict]
    mapper: Callable[[dict], dict]
    buffer: int
    seed: int

    def __post_init__(self):
        self.has_shards = "shard" in self.rows[0]
        self.epoch_size = sum(map(num_slots, self.rows))


class WorkerIterator:
    """Iterates over the samples of one worker, epoch after epoch; `position` is that after the last sample."""

    def __init__(
        self,
        stream: ImageTextStream,
        worker: int,
        num_workers: int,
        num_drawn: int = 0,
        position: Position | None = None,
    ):
        """Begin after the samples that this worker has drawn before.

        Args:
            position: that of an iterator of the same worker, to go on exactly where it was; None to go by `num_drawn`,
                which is exact if no sample is broken and the rows have the true numbers of samples.
        """
        self.stream, self.worker, self.num_workers = stream, worker, num_workers
        self.position = position or self._find(num_drawn)
        self._skipped = SkipCounter()
        self._samples = self._iterate()

    def __iter__(self) -> "WorkerIterator":
        return self

    def __next__(self) -> dict:
        """Return the next sample; OSError if a whole epoch gave none."""
        return next(self._samples)

    def _find(self, num_drawn: int) -> Position:
        """Find the position after so many samples, by the numbers in the rows."""
        epoch_size, stream = self.stream.epoch_size, self.stream
        epoch = (num_drawn * self.num_workers + self.worker) // epoch_size
        num_drawn -= _share(epoch * epoch_size, self.worker, self.num_workers)
        if not stream.has_shards:
            return Position(epoch, drawn=num_drawn)

        # The block of the next sample, and where it begins
        block, drawn = divmod(num_drawn, stream.buffer)
        rows, part = self._order(epoch), self._part(epoch)
        segments, rest = _find_segments(rows, part), _find_segments(rows, part[block * stream.buffer :])
        _, sample, _ = rest[0]
        return Position(epoch, len(segments) - len(rest), sample, block, drawn)

    def _order(self, epoch: int) -> list[dict]:
        """Return the rows in the order of an epoch."""
        rng = random.Random(f"{self.stream.seed} {self.stream.name} {epoch}")
        return rng.sample(self.stream.rows, len(self.stream.rows))

    def _part(self, epoch: int) -> range:
        """Return the places of the worker's samples in the order of an epoch."""
        begin, end = epoch * self.stream.epoch_size, (epoch + 1) * self.stream.epoch_size
        sizes = [_share(end, w, self.num_workers) - _share(begin, w, self.num_workers) for w in range(self.num_workers)]

        # In each epoch it has another part, also of shards with fewer samples than their rows say
        place = (self.worker + epoch) % self.num_workers
        start = sum(sizes[(other - epoch) % self.num_workers] for other in range(place))
        return range(start, start + sizes[self.worker])

    def _iterate(self) -> Iterator[dict]:
        fruitless_epochs = 0
        while True:
            is_whole = self.position == Position(self.position.epoch)
            part, broken_before = self._part(self.position.epoch), self._skipped.count_samples()
            num_yielded = 0
            for sample in self._iterate_epoch(part):
                num_yielded += 1
                yield sample

            # The rest of an epoch may be empty, and a part of shards with fewer samples than their rows say
            fruitless_epochs = fruitless_epochs + 1 if part and is_whole and not num_yielded else 0
            are_all_broken = fruitless_epochs and self._skipped.count_samples() > broken_before
            if are_all_broken or fruitless_epochs == self.num_workers:
                raise OSError(
                    f"Dataset '{self.stream.name}': a whole epoch of worker {self.worker + 1} of {self.num_workers} "
                    f"gave no usable sample ({self._skipped}){self._skipped.last and ', such as ' + self._skipped.last}"
                )
            self.position = Position(self.position.epoch + 1)

    def _iterate_epoch(self, part: range) -> Iterator[dict]:
        """Yield the mapped samples of a part of the epoch, from the position on."""
        rows = self._order(self.position.epoch)
        if not self.stream.has_shards:
            yield from self._map_block(rows[part.start : part.stop])
            return

        samples = self._read_shards(_find_segments(rows, part))
        while block := list(itertools.islice(samples, self.stream.buffer)):
            segment, number, _ = block[0]
            epoch, block_number = self.position.epoch, self.position.block
            self.position = Position(epoch, segment, number, block_number, self.position.drawn)
            random.Random(f"{self.stream.seed} {self.stream.name} {epoch} {self.worker} {block_number}").shuffle(block)
            yield from self._map_block([sample for _, _, sample in block])
            block.clear()  # before the next one is read
            self.position = Position(epoch, block=block_number + 1)

    def _map_block(self, block: Sequence[dict | ShardSample]) -> Iterator[dict]:
        for drawn in range(self.position.drawn, len(block)):
            self.position = self.position._replace(drawn=drawn + 1)
            try:
                sample = block[drawn]
                mapped = self.stream.mapper(sample.to_pair() if isinstance(sample, ShardSample) else sample)
            except BrokenSample as error:
                self._skipped.add(error.reason, str(error))
                continue
            yield mapped

    def _read_shards(self, segments: list["_Segment"]) -> Iterator[tuple[int, int, ShardSample]]:
        """Read samples of shards from the position on, each with the number of its segment and its number in the shard.

        A shard that breaks off is counted. A shard on the web that cannot be reached is an OSError instead: when it can
        be read again, a resumed training draws the samples of an uninterrupted one.
        """
        begin = self.position
        for number in range(begin.segment, len(segments)):
            shard, first, last = segments[number]
            if number == begin.segment:
                first = max(first, begin.sample)

            try:
                with open_shard(shard) as tar:
                    for sample in read_samples(tar, shard, first, last):
                        if sample.has_image():
                            yield number, first, sample
                            first += 1
                        else:
                            self._skipped.add("no image", f"{sample.name} ({SORT_ADVICE})")
            except UnreadableAddress as error:
                raise OSError(
                    f"Dataset '{self.stream.name}': the shard {error.address} cannot be read, also after further "
                    f"tries: {error.reason}. --resume goes on when it can be read again."
                ) from None
            except BROKEN_TAR as error:
                self._skipped.add(UNREADABLE_SHARD, f"{shard}: {error}")


def _share(num_draws: int, worker: int, num_workers: int) -> int:
    """Return how many of the first draws of all workers are a worker's: every N-th."""
    return max(0, (num_draws - worker + num_workers - 1) // num_workers)


# Successive samples of a shard: its path, the first one's number, and the number to stop before; None for all
_Segment = tuple[str, int, int | None]


def _find_segments(rows: list[dict], part: range) -> list[_Segment]:
    """Find the shards' segments that make up a part of an epoch.

    A shard with more samples than its row says is read to the end by the worker that has its last one.
    """
    segments = []
    stop = 0
    for row in rows:
        start, stop = stop, stop + num_slots(row)
        if start < part.stop and part.start < stop:
            last = None if stop <= part.stop else part.stop - start
            segments.append((row["shard"], max(0, part.start - start), last))
    return segments
