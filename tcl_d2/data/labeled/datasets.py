"""Labeled training datasets and their share of each batch."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, DatasetFromList, MapDataset, MetadataCatalog
from detectron2.data.common import ToIterableDataset
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler
from detectron2.utils.logger import log_first_n
from torch.utils.data import IterableDataset, Sampler

from ...utils.errors import expect, named
from ...words.vocabulary import dataset_vocabulary
from ..labels import LabelMapper
from ..pairs.register import TRAIN_ONLY_TYPE
from .mapper import SemSegDatasetMapper


def is_labeled(name: str) -> bool:
    """Return whether a registered dataset has classes for each pixel: a benchmark, or one of Detectron2's sem_seg."""
    metadata = MetadataCatalog.get(name).as_dict() if name in DatasetCatalog else {}
    return "stuff_classes" in metadata and metadata.get("evaluator_type") != TRAIN_ONLY_TYPE


def read_labeled_dataset(name: str) -> list[dict]:
    """Return the rows of a labeled dataset, each with its `dataset_name`.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: it has no rows, or rows without labels, or its metadata do not fit together; names it.
    """
    rows = DatasetCatalog.get(name)
    label_mapper = LabelMapper.of(name)
    with named(f"Dataset '{name}' cannot be trained on as a labeled dataset"):
        unlabeled = sum(not row.get("sem_seg_file_name") for row in rows)
        if not rows:
            raise ValueError("it has no rows")
        if unlabeled:
            raise ValueError(f"{unlabeled} of its {len(rows)} rows have no 'sem_seg_file_name'")
        dataset_vocabulary(name)

    if masks := label_mapper.describe_masks([row["sem_seg_file_name"] for row in rows]):
        log_first_n(logging.WARNING, f"Dataset '{name}': {masks}", name=__name__, key="message")
    return [{**row, "dataset_name": name} for row in rows]


def split_batch(batch_size: int, ratio: float, has_captions: bool, has_labels: bool) -> tuple[int, int]:
    """Split a process's batch into its numbers of images with captions and with labels.

    Args:
        ratio: share of images with labels, if there are datasets of both: rounded to the nearest number of images, half
            up, and at least one of each.

    Raises:
        ValueError: the ratio does not fit the datasets, or the batch is too small for both.
    """
    key = "DATALOADER.LABELED_RATIO"
    if not has_labels:
        expect(not ratio, key, ratio, "0, or a labeled dataset in DATASETS.TRAIN")
        return batch_size, 0
    if not has_captions:
        return 0, batch_size

    expected = "the share of labeled images in a batch, more than 0 and less than 1: DATASETS.TRAIN has both kinds"
    expect(0 < ratio < 1, key, ratio, expected)
    expected = "at least 2: an image with a caption, and one with labels"
    expect(batch_size > 1, "SOLVER.IMS_PER_BATCH", f"{batch_size} for each process", expected)
    labeled_size = min(max(math.floor(ratio * batch_size + 0.5), 1), batch_size - 1)
    return batch_size - labeled_size, labeled_size


class LabeledDatasets:
    """Labeled datasets, each of whose images comes once an epoch, in the order of Detectron2's samplers."""

    @configurable
    def __init__(self, names: Sequence[str], *, mapper: Callable[[dict], dict], subset_ratio: float = 1.0):
        """Read the datasets' rows.

        Args:
            names: registered labeled datasets; they may have different classes.
            mapper: turns a row into the model's input, see SemSegDatasetMapper.
            subset_ratio: share of all images together to train on, drawn by the seed; 1 for all.

        Raises:
            FileNotFoundError, ValueError: see read_labeled_dataset; or the subset is empty.
        """
        self.mapper = mapper
        self.subset_ratio = subset_ratio
        self._rows = [row for name in names for row in read_labeled_dataset(name)]
        is_right = 0 < subset_ratio <= 1 and int(subset_ratio * len(self._rows)) > 0
        expected = f"at most 1, and at least one of {len(self._rows)} labeled images"
        expect(is_right, "DATALOADER.RANDOM_SUBSET_RATIO", subset_ratio, expected)

    @classmethod
    def from_config(cls, cfg: CfgNode, names: Sequence[str], mapper: Callable[[dict], dict] | None = None) -> dict:
        return {
            "names": names,
            "mapper": mapper or SemSegDatasetMapper(cfg, names),
            "subset_ratio": cfg.DATALOADER.RANDOM_SUBSET_RATIO,
        }

    def stream(self, seed: int, num_drawn: int, chunk_size: int) -> IterableDataset:
        """Return the endless stream of a process's images, of which each loader worker has its share.

        Args:
            seed: the same seed gives the same images in the same order.
            num_drawn: images that each process has drawn before.
            chunk_size: successive images of one worker.
        """
        size = len(self._rows)
        if self.subset_ratio < 1:
            sampler = RandomSubsetTrainingSampler(size, self.subset_ratio, seed_shuffle=seed, seed_subset=seed)
        else:
            sampler = TrainingSampler(size, seed=seed)
        sampler = _LaterSampler(sampler, num_drawn)
        dataset = MapDataset(DatasetFromList(self._rows, copy=False), self.mapper)
        return ToIterableDataset(dataset, sampler, shard_chunk_size=chunk_size)


class _LaterSampler(Sampler):
    def __init__(self, sampler: Sampler, start: int):
        self.sampler = sampler
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.sampler), self.start, None)
