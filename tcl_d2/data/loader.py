"""The loader of training batches: streams of pairs and of labeled images, mixed, restartable at any sample."""

import itertools
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from detectron2.config import CfgNode, configurable
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import IterableDataset

from ..config.ranges import check_values
from ..utils.errors import expect
from ..utils.files import check_shared_memory
from .labeled import LabeledDatasets, is_labeled, split_batch
from .pairs.mapper import ImageTextDatasetMapper
from .pairs.stream import ImageTextStream, Position, WorkerIterator, count_samples, loader_worker, read_dataset


def mix(
    streams: Sequence[ImageTextStream],
    weights: Sequence[float],
    seed: int,
    worker: int,
    num_workers: int,
    num_drawn: int = 0,
    positions: Sequence[Position] | None = None,
) -> Iterator[tuple[dict, list[Position]]]:
    """Yield a worker's samples, each of a stream drawn in proportion to the weights, and the streams' positions then.

    Args:
        num_drawn: samples that this worker has drawn before.
        positions: of the streams after the last of them; None to find them approximately, see ImageTextStream.
    """
    rng = random.Random(f"{seed} {worker} {num_workers}")
    counts = Counter(rng.choices(range(len(streams)), weights, k=num_drawn))
    starts: Sequence[Position | None] = positions or [None] * len(streams)
    iterators = [WorkerIterator(x, worker, num_workers, counts[i], starts[i]) for i, x in enumerate(streams)]
    while True:
        (iterator,) = rng.choices(iterators, weights)
        yield next(iterator), [iterator.position for iterator in iterators]


@dataclass(eq=False)
class TrainingStream(IterableDataset):
    """The samples of a process's batches, one batch after the other: first pairs, then labeled images.

    They, and the random choices of their augmentation, depend on the seed, the number of the batch, the process, and
    the numbers of processes and workers alone. The last pair of a batch has the streams' positions after it as
    `positions`.

    Attributes:
        pairs: `mix` with its streams, weights and seed.
        num_pairs: in a batch; so is num_labeled.
        labeled: may be None if `num_labeled` is 0.
        num_batches: batches that were drawn before.
        positions: of the streams after the last of them, by worker of this process; None where unknown.
    """

    pairs: Callable[..., Iterator[tuple[dict, list[Position]]]]
    num_pairs: int
    labeled: LabeledDatasets | None
    num_labeled: int
    seed: int
    num_batches: int
    positions: Sequence[Sequence[Position] | None]

    def __iter__(self) -> Iterator[dict]:
        # The loader takes batches from its workers in turn, from worker 0 on. So a worker goes on with the share of the
        # one whose turn it was.
        worker, num_workers = loader_worker()
        first_batch = self.num_batches + worker
        batches_before, share = divmod(first_batch, num_workers)
        index, num_indices = comm.get_rank() * num_workers + share, comm.get_world_size() * num_workers
        num_drawn = batches_before * self.num_pairs
        pairs = self.pairs(index, num_indices, num_drawn, self.positions[share])
        labeled = iter(())
        if self.labeled is not None and self.num_labeled:
            labeled = iter(self.labeled.stream(self.seed, self.num_batches * self.num_labeled, self.num_labeled))

        for batch in itertools.count(first_batch, num_workers):
            seed_all_rng(zlib.crc32(f"{self.seed} data {batch} {comm.get_rank()}".encode()))
            for number in range(self.num_pairs):
                sample, positions = next(pairs)
                yield {**sample, "positions": positions} if number == self.num_pairs - 1 else sample
            yield from itertools.islice(labeled, self.num_labeled)


class RestartableLoader:
    """Batches that can be restarted with another seed or at another sample.

    A Trainer that resumes restarts such a loader, and so draws the samples of an uninterrupted training.

    Args:
        build: returns an endless loader for a seed, a number of batches before it, and positions.
        num_workers: loader processes; 0 for none.
        settings: what decides on samples beside the seed and the start.
    """

    def __init__(self, build: Callable, num_workers: int, settings: dict, seed: int, start: int):
        self._build = build
        self._num_workers = max(1, num_workers)
        self._settings = {**settings, "processes": comm.get_world_size(), "workers": self._num_workers}
        self.restart(seed, start)

    def restart(self, seed: int, start: int, state: dict | None = None) -> None:
        """Restart with this seed at this sample; existing iterators stay as they are.

        Args:
            seed: the same seed gives the same batches.
            start: images that all processes have drawn before, in whole batches.
            state: that of `gather_state` after them. It is ignored if it has another seed or other settings.
        """
        self._settings["seed"] = seed
        positions = [None] * self._num_workers
        if state and state["settings"] == self._settings:
            positions = state["positions"][comm.get_rank()]
        self._positions = [worker and [Position(*position) for position in worker] for worker in positions]
        self._num_batches = start // self._settings["batch"]
        self._loader = self._build(seed, self._num_batches, self._positions)

    def gather_state(self) -> dict:
        """Return the positions of the workers of all processes after the last batch. All processes must call this."""
        positions = [worker and [tuple(position) for position in worker] for worker in self._positions]
        return {"settings": dict(self._settings), "positions": comm.all_gather(positions)}

    def __iter__(self) -> Iterator[list[dict]]:
        for number, batch in enumerate(self._loader, start=self._num_batches):
            for sample in batch:
                if "positions" in sample:
                    self._positions[number % self._num_workers] = sample.pop("positions")
            yield batch


def _train_loader_from_config(
    cfg: CfgNode, *, mapper: Callable | None = None, labeled_mapper: Callable | None = None, **overrides: int
) -> dict:
    labeled_names = [name for name in cfg.DATASETS.TRAIN if is_labeled(name)]
    return {
        "names": [name for name in cfg.DATASETS.TRAIN if name not in labeled_names],
        "mapper": mapper or ImageTextDatasetMapper(cfg, is_train=True),
        "labeled": LabeledDatasets(cfg, labeled_names, labeled_mapper) if labeled_names else None,
        "labeled_ratio": cfg.DATALOADER.LABELED_RATIO,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "buffer": cfg.DATALOADER.SHUFFLE_BUFFER,
        "seed": max(cfg.SEED, 0),
        **overrides,
    }


def check_workers(cfg: CfgNode, eval_only: bool) -> None:
    """Check that there is shared memory for the loader workers' batches; OSError says what to do."""
    batch_size = cfg.TEST.ZERO_SHOT.IMS_PER_BATCH if eval_only else cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    num_batches = 2 * cfg.DATALOADER.NUM_WORKERS  # each process is two batches ahead
    num_bytes = num_batches * batch_size * 3 * cfg.INPUT.IMAGE_TEXT.SIZE**2 * 4
    if num_bytes > 0:
        check_shared_memory(num_bytes, "; or lower DATALOADER.NUM_WORKERS (0: no processes)")


def _check_numbers(total_batch_size: int, num_workers: int, buffer: int) -> int:
    """Check the loader's numbers, and return the images in a process's batch; ValueError names the config key."""
    processes = comm.get_world_size()
    expected = f"a positive multiple of the number of processes, {processes} (--num-gpus)"
    is_right = total_batch_size > 0 and total_batch_size % processes == 0
    expect(is_right, "SOLVER.IMS_PER_BATCH", total_batch_size, expected)
    check_values("DATALOADER", NUM_WORKERS=num_workers, SHUFFLE_BUFFER=buffer)
    return total_batch_size // processes


@configurable(from_config=_train_loader_from_config)
def build_image_text_train_loader(
    names: list[str],
    *,
    mapper: Callable[[dict], dict],
    labeled: LabeledDatasets | None = None,
    labeled_ratio: float = 0.0,
    total_batch_size: int,
    num_workers: int = 0,
    buffer: int = 1000,
    seed: int = 0,
    start: int = 0,
) -> RestartableLoader:
    """Build an endless iterable of batches, list[dict] as the mappers give them: first pairs, then labeled images.

    The datasets are mixed in proportion to their numbers of pairs.

    Args:
        labeled_ratio: share of labeled images in each process's batch, see split_batch.
        total_batch_size: images in a batch of all processes together.
        buffer: samples that each worker holds to draw from.
        seed: the same seed, workers and processes give the same batches on one machine.
        start: images that all processes have drawn before, in whole batches.

    Raises:
        ValueError: no datasets, a dataset without samples, or a number out of its range; names the config key.
    """
    expect(bool(names or labeled), "DATASETS.TRAIN", "empty", "at least one image-text or labeled dataset")
    batch_size = _check_numbers(total_batch_size, num_workers, buffer)
    num_pairs, num_labeled = split_batch(batch_size, labeled_ratio, bool(names), labeled is not None)
    datasets = [read_dataset(name) for name in names]

    def build(seed: int, num_batches: int, positions: list) -> Iterable:
        streams = [ImageTextStream(name, rows, mapper, buffer, seed) for name, rows in zip(names, datasets)]
        pairs = partial(mix, streams, list(map(count_samples, datasets)), seed)
        stream = TrainingStream(pairs, num_pairs, labeled, num_labeled, seed, num_batches, list(positions))
        options = {"total_batch_size": total_batch_size, "num_workers": num_workers, "seed": seed}
        loader = build_detection_train_loader(stream, mapper=None, aspect_ratio_grouping=False, **options)
        return cast(Iterable, loader)

    settings = {"datasets": list(names), "buffer": buffer, "batch": total_batch_size, "labeled": num_labeled}
    return RestartableLoader(build, num_workers, settings, seed, start)
