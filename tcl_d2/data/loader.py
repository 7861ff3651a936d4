"""The loader of training batches: streams of pairs and of labeled images, mixed, and begun anew at any sample."""

import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm
from torch.utils.data import IterableDataset, get_worker_info

from .image_text_stream import ImageTextStream, count_samples, read_dataset
from .labeled import LabeledDatasets, is_labeled, split_batch
from .mapper import ImageTextDatasetMapper


class Mixture(IterableDataset):
    """Draws each sample from one of several streams, in proportion to their weights."""

    def __init__(self, streams: list[ImageTextStream], weights: list[float], seed: str):
        self.streams = streams
        self.weights = weights
        self.seed = seed

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        rng = random.Random(f"{self.seed} {comm.get_rank()} {info.id if info else 0}")
        iterators = [iter(stream) for stream in self.streams]
        while True:
            (iterator,) = rng.choices(iterators, self.weights)
            yield next(iterator)


class Alternation(IterableDataset):
    """Gives some samples of each of several streams in turn, so that batches of all of them have the same shares."""

    def __init__(self, streams: Sequence[IterableDataset], counts: Sequence[int]):
        """Join streams.

        Args:
            streams: endless.
            counts: samples in a row of each.
        """
        self.streams = streams
        self.counts = counts

    def __iter__(self) -> Iterator[dict]:
        iterators = [iter(stream) for stream in self.streams]
        while True:
            for iterator, count in zip(iterators, self.counts):
                yield from itertools.islice(iterator, count)


class RestartableLoader:
    """Batches that can begin with another seed or at another sample.

    A Trainer restarts such a loader at each checkpoint, so that a resumed training draws the samples of an
    uninterrupted one.
    """

    def __init__(self, build: Callable[[int, int], Iterable[list[dict]]], seed: int, start: int):
        """Build the first loader.

        Args:
            build: makes an endless loader for a seed and a start; see build_image_text_train_loader.
            seed: of the first loader.
            start: of the first loader.
        """
        self._build = build
        self.restart(seed, start)

    def restart(self, seed: int, start: int) -> None:
        """Begin with this seed at this sample; iterators that exist stay as they are."""
        self._loader = self._build(seed, start)

    def __iter__(self) -> Iterator[list[dict]]:
        return iter(self._loader)


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
    labeled: LabeledDatasets | None = None,
    labeled_ratio: float = 0.0,
    total_batch_size: int,
    num_workers: int = 0,
    buffer: int = 1000,
    seed: int = 0,
    start: int = 0,
) -> RestartableLoader:
    """Build an endless iterable of batches, list[dict] as the mappers give them: first pairs, then labeled images.

    Args:
        names: registered image-text datasets, mixed in proportion to their numbers of pairs.
        mapper: makes of a sample what the model takes, see ImageTextDatasetMapper.
        labeled: labeled datasets; None for none.
        labeled_ratio: share of the images of each process's batch that is of them, see split_batch.
        total_batch_size: images in a batch of all processes together.
        num_workers: loader processes of each training process; 0 for none.
        buffer: samples that each worker holds to draw from.
        seed: the same seed, workers and processes give the same batches on one machine.
        start: samples of all processes to leave out at the beginning, about: a shard is read whole. The rest of the
            epoch follows in the same order, with other random choices.

    Raises:
        ValueError: no datasets, a dataset without samples, or a number out of its range; names the config key.
    """
    if not names and labeled is None:
        raise ValueError("DATASETS.TRAIN is empty: name at least one image-text or labeled dataset.")
    _check_numbers(total_batch_size, num_workers, buffer)
    batch_size = total_batch_size // comm.get_world_size()
    num_pairs, num_labeled = split_batch(batch_size, labeled_ratio, bool(names), labeled is not None)

    datasets = [read_dataset(name) for name in names]
    sizes = [count_samples(rows) for rows in datasets]

    def build(seed: int, start: int) -> Iterable[list[dict]]:
        parts, counts = [], []
        if num_pairs:
            # One stream a dataset, which starts where its share of the samples ends
            first = start * num_pairs // batch_size
            streams = [
                ImageTextStream(name, rows, mapper, buffer, seed, int(first * size / sum(sizes)))
                for name, rows, size in zip(names, datasets, sizes)
            ]
            parts.append(Mixture(streams, sizes, f"{seed} {start}"))
            counts.append(num_pairs)

        if num_labeled:
            parts.append(labeled.stream(seed, start * num_labeled // batch_size, num_labeled))
            counts.append(num_labeled)

        # Augmentation draws from the workers' own generators, which are seeded by `augmentation_seed`.
        augmentation_seed = zlib.crc32(f"{seed} {start} {comm.get_rank()}".encode())
        return build_detection_train_loader(
            Alternation(parts, counts),
            mapper=None,
            total_batch_size=total_batch_size,
            aspect_ratio_grouping=False,
            num_workers=num_workers,
            seed=augmentation_seed,
        )

    return RestartableLoader(build, seed, start)
