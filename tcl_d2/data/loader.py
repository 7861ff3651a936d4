"""The endless, shuffled, seeded stream of image-text pairs, split over processes and workers."""

import itertools
import logging
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.utils import comm
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.tariterators import tarfile_samples

from .images import IMAGE_SUFFIXES, BrokenSample
from .mapper import ImageTextDatasetMapper

logger = logging.getLogger(__name__)


class SkipCounter:
    """Counts the samples that were skipped, by reason; logs the first ones, then each power of ten."""

    def __init__(self):
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, message: str) -> None:
        self.counts[reason] += 1
        count = self.counts[reason]
        if count <= 3 or str(count).strip("0") == "1":
            logger.warning("Skipped a sample (%s: %d so far in this worker): %s", reason, count, message)

    def __str__(self) -> str:
        return ", ".join(f"{reason}: {count}" for reason, count in self.counts.most_common()) or "no samples"


def _from_tar(sample: dict) -> dict:
    """webdataset's sample -> the mapper's; BrokenSample without image or caption, or with several."""
    name = f"{sample['__url__']}/{sample['__key__']}"
    image = _member(sample, IMAGE_SUFFIXES, name, "image")
    if not image:  # a file of zero bytes
        raise BrokenSample("no image", name)
    return {"image_bytes": image, "captions": [_member(sample, (".txt",), name, "caption")], "key": name}


def _member(sample: dict, suffixes: tuple[str, ...], name: str, content: str) -> bytes:
    """Return a sample's file with one of these suffixes.

    webdataset ends a sample's key at the first dot: of `my.photo.png` the key is `my` and the rest `photo.png`. So a
    file with the whole rest as its suffix comes first; otherwise the one file whose last suffix fits.
    """
    exact = [suffix[1:] for suffix in suffixes if suffix[1:] in sample]
    members = exact[:1] or [member for member in sample if member.endswith(suffixes)]
    if not members:
        raise BrokenSample(f"no {content}", name)
    if len(members) > 1:
        raise BrokenSample(f"several {content}s", name, ", ".join(members))
    return sample[members[0]]


def _is_shards(rows: list[dict]) -> bool:
    return "shard" in rows[0]


class ImageTextStream(IterableDataset):
    """Endless samples, ready for the model, of one source: this process's and worker's share, shuffled each pass."""

    def __init__(
        self, name: str, rows: list[dict], mapper: Callable[[dict], dict], buffer: int, seed: int, start: int = 0
    ):
        """
        Args:
            name: of the source, for messages.
            rows: as its catalog entry gives them.
            buffer: samples from which the next one is drawn (shards; other rows are shuffled as a whole).
            start: samples of all shares to leave out at the beginning, passes included; to the next whole shard before.
        """
        self.name = name
        self.rows = rows
        self.mapper = mapper
        self.buffer = buffer
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        index = comm.get_rank() * workers + (worker.id if worker else 0)
        return self.iterate(index, comm.get_world_size() * workers)

    def iterate(self, index: int, count: int) -> Iterator[dict]:
        """The share `index` of `count`: no sample is in two shares of a pass, and each is in one.

        Raises:
            RuntimeError: a whole pass gave nothing; says why.
        """
        skipped = SkipCounter()
        first, begin = divmod(self.start, max(1, int(size_of(self.rows))))
        for turn in itertools.count(first):
            good = 0
            for sample in self._one_pass(turn, index, count, skipped, begin if turn == first else 0):
                try:
                    mapped = self.mapper(_from_tar(sample) if _is_shards(self.rows) else sample)
                except BrokenSample as error:
                    skipped.add(error.reason, str(error))
                    continue
                good += 1
                yield mapped
            if not good and not (turn == first and begin):
                raise RuntimeError(
                    f"Data set '{self.name}': a whole pass over share {index + 1} of {count} gave no usable sample "
                    f"({skipped}). Check the data, or use fewer processes and workers than it has samples."
                )

    def _one_pass(self, turn: int, index: int, count: int, skipped: SkipCounter, begin: int = 0) -> Iterator[dict]:
        # The order of rows is one for all shares: the same generator everywhere, then every count-th row.
        order = random.Random(f"{self.seed} {self.name} {turn}")
        rows = order.sample(self.rows, len(self.rows))
        enough = len(rows) >= count or not _is_shards(rows)
        if enough:
            rows = rows[index::count]
            begin //= count
        rows = _drop(rows, begin)
        if not _is_shards(self.rows):
            return iter(rows)

        def skip(error: Exception) -> bool:
            skipped.add("unreadable shard", str(error))
            return True

        samples = tarfile_samples(({"url": row["shard"]} for row in rows), handler=skip)
        if not enough:  # to give each share one: all shares read all shards, and each keeps every count-th sample
            samples = itertools.islice(samples, index, None, count)
        own = random.Random(f"{self.seed} {self.name} {turn} {index} {begin}")
        return shuffle(self.buffer, initial=min(self.buffer, 100), rng=own)(samples)


def _drop(rows: list[dict], samples: int) -> list[dict]:
    """The rows without the first ones that hold at most so many samples together."""
    ends = itertools.accumulate(row.get("num_samples", 1) for row in rows)
    return rows[sum(end <= samples for end in ends) :]


class Mixture(IterableDataset):
    """Draws each sample from one of several streams, in proportion to their weights."""

    def __init__(self, streams: list[ImageTextStream], weights: list[float], seed: str):
        self.streams = streams
        self.weights = weights
        self.seed = seed

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        draw = random.Random(f"{self.seed} {comm.get_rank()} {worker.id if worker else 0}")
        running = [iter(stream) for stream in self.streams]
        while True:
            yield next(draw.choices(running, self.weights)[0])


def size_of(rows: list[dict]) -> float:
    """Number of pairs; an image with several captions counts once."""
    return sum(row.get("num_samples", 1) for row in rows)


def _train_loader_from_config(cfg: CfgNode, *, mapper: Callable | None = None, **others: int) -> dict:
    return {
        "names": list(cfg.DATASETS.TRAIN),
        "mapper": mapper or ImageTextDatasetMapper(cfg, is_train=True),
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "buffer": cfg.DATALOADER.SHUFFLE_BUFFER,
        "seed": max(cfg.SEED, 0),
        **others,
    }


def _check_numbers(total_batch_size: int, num_workers: int, buffer: int) -> None:
    """Raise a ValueError that names the config key of the first number that is out of its range."""
    processes = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % processes:
        expected = "at least 1" if processes == 1 else f"a positive multiple of the {processes} processes (--num-gpus)"
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {total_batch_size}; expected {expected}.")
    if num_workers < 0:
        raise ValueError(f"DATALOADER.NUM_WORKERS is {num_workers}; expected 0 (none) or more.")
    if buffer < 1:
        raise ValueError(f"DATALOADER.SHUFFLE_BUFFER is {buffer}; expected at least 1 (no shuffling within a shard).")


@configurable(from_config=_train_loader_from_config)
def build_image_text_train_loader(
    names: list[str],
    *,
    mapper: Callable[[dict], dict],
    total_batch_size: int,
    num_workers: int = 0,
    buffer: int = 1000,
    seed: int = 0,
    start: int = 0,
):
    """An endless iterable of batches, list[dict] as `mapper` gives them.

    Args:
        names: registered image-text data sets, mixed in proportion to their numbers of pairs.
        total_batch_size: of all processes together.
        buffer: samples that each worker holds to draw from.
        seed: the same seed, workers and processes give the same batches on one machine.
        start: samples of all processes to leave out at the beginning, about: a shard is read whole. The rest of the
            pass follows in the same order, with other random choices.

    Raises:
        ValueError: no data sets, or a number out of its range; names the config key.
    """
    if not names:
        raise ValueError("DATASETS.TRAIN is empty: name at least one image-text data set.")
    _check_numbers(total_batch_size, num_workers, buffer)

    # One stream a source, which starts where its share of the samples ends
    sources = [DatasetCatalog.get(name) for name in names]
    sizes = [size_of(rows) for rows in sources]
    streams = [
        ImageTextStream(name, rows, mapper, buffer, seed, int(start * size / sum(sizes)))
        for name, rows, size in zip(names, sources, sizes)
    ]
    return build_detection_train_loader(
        Mixture(streams, sizes, f"{seed} {start}"),
        mapper=None,
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=False,
        num_workers=num_workers,
        # Of the workers' own generators, from which augmentation draws.
        seed=zlib.crc32(f"{seed} {start} {comm.get_rank()}".encode()),
    )
