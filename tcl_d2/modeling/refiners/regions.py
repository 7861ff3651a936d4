"""Votes of regions: all pixels of a region get one class."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...config.ranges import check_values
from ...segmentation.region_files import read_regions, region_file
from ..functional import map_size
from .base import Refiner

_KEY = "TEST.ZERO_SHOT.REGIONS"


class RegionVote(Refiner):
    """Gives each region of an image one class; the regions come from files, see read_regions."""

    stage = "classes"

    def __init__(self, folder: str | Path, rule: str = "vote"):
        """Set where regions come from, and which class they get.

        Args:
            folder: has a file for each image, see region_file.
            rule: "vote": the class that is best at most pixels of a region; scores become shares of votes. "mean": the
                class with the best mean score.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: another rule.
        """
        super().__init__()
        check_values(_KEY, RULE=rule)
        self.folder = Path(folder)
        self.rule = rule
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{_KEY}.FOLDER is '{folder}', but there is no such folder")

    def bind(self, images: Tensor, input_per_image: Mapping | None = None) -> Callable[[Tensor], Tensor]:
        file_name = (input_per_image or {}).get("file_name")
        if file_name is None:
            raise ValueError(f"{_KEY}.FOLDER has regions by the names of images: give images as files")
        regions = read_regions(region_file(self.folder, file_name), map_size(images))
        return partial(self._decide, torch.from_numpy(regions))

    def _decide(self, regions: Tensor, scores: Tensor) -> Tensor:
        """Average scores, or votes, over regions [H, W]: [1, K, H, W] -> fp32 [1, K, H, W]; others keep their own."""
        regions = regions.to(scores.device)
        indices = regions.flatten()
        sizes = torch.bincount(indices)
        best = scores[0].argmax(0)

        means = torch.empty_like(scores, dtype=torch.float32)
        for k, score in enumerate(scores[0]):
            values = score if self.rule == "mean" else (best == k).float()
            sums = torch.bincount(indices, weights=values.flatten().double(), minlength=len(sizes))
            mean = (sums / sizes.clamp(min=1)).float()[regions]
            means[0, k] = torch.where(regions > 0, mean, values)
        return means
