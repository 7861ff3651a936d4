"""The loader of training batches of features on disk, see features.py."""

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor

from ..utils.errors import expect, named
from ..utils.tensors import read_tensors
from .features import check_part, feature_facts, list_parts, part_path
from .loader import RestartableLoader

_KEY = "MODEL.TALK2DINO.FEATURES"


class CaptionFeatures:
    """The features of all captions in a folder, each with its image's; files are mapped, not read into memory."""

    def __init__(self, paths: Sequence[Path]):
        """Map files of features."""
        self._files = [read_tensors(path) for path in paths]
        sizes = torch.tensor([len(file["image"]) for file in self._files])
        self._ends = sizes.cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number = int(torch.searchsorted(self._ends, index, right=True))
        file = self._files[number]
        place = index - int(self._ends[number]) + len(file["image"])
        return {"text": file["text"][place], "heads": file["heads"][file["image"][place]]}


def find_features(cfg: CfgNode) -> list[Path]:
    """Return the files of finished features of a configuration's models and data.

    Raises:
        FileNotFoundError, ValueError: there are none, they are not finished, or of other models or data.
    """
    folder = Path(cfg.MODEL.TALK2DINO.FEATURES).expanduser()
    with named(_KEY):
        total = len(list_parts(cfg.DATASETS.TRAIN))
        paths = [part_path(folder, number, total) for number in range(total)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"'{folder}' has {total - len(missing)} of the {total} files of the features of DATASETS.TRAIN: make "
                "them, or the rest of them, by tcl-d2 features with the same configuration"
            )
        num_captions = sum(int(check_part(path, feature_facts(cfg))["captions"]) for path in paths)
        if not num_captions:
            raise ValueError(f"'{folder}' has no captions: no image of DATASETS.TRAIN could be read")
    return paths


def build_feature_loader(cfg: CfgNode) -> RestartableLoader:
    """Build an endless loader of captions' features, in another order each epoch; errors as find_features.

    A batch may go over the end of an epoch.
    """
    features, size, processes = CaptionFeatures(find_features(cfg)), cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    expected = f"a positive multiple of the number of processes, {processes} (--num-gpus)"
    expect(size % processes == 0, "SOLVER.IMS_PER_BATCH", size, expected)

    def build(seed: int, num_batches: int, positions: list) -> Iterator[list[dict]]:
        share = size // processes
        first = num_batches * size + comm.get_rank() * share
        for start in count(first, size):
            yield [features[_draw(index, len(features), seed)] for index in range(start, start + share)]

    settings = {"features": cfg.MODEL.TALK2DINO.FEATURES, "batch": size}
    return RestartableLoader(build, 0, settings, max(cfg.SEED, 0), 0)


def _draw(place: int, length: int, seed: int) -> int:
    """Return the number of the caption at a place in the endless order of epochs."""
    epoch, rest = divmod(place, length)
    return int(_order(length, seed, epoch)[rest])


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} features {epoch}".encode()))
    return torch.randperm(length, generator=generator)
