"""ImageBatches: which images are segmented together, and what is done where memory runs out."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..functional import map_size
from .objects import OUTPUTS
from .windows import window_slices

logger = logging.getLogger(__name__)
# Bounds of the windows that are encoded at once, of one image or several
_WINDOWS_AT_ONCE = 64
_WINDOW_PIXELS_AT_ONCE = 8 * 448 * 448
_WINDOW_PIXELS_AT_ONCE_ON_CPU = 2 * 448 * 448  # more take longer, each
# What an image is asked for; images that are segmented together are asked for the same
_REQUEST = ("dataset_name", "vocabulary", "background", "negative", "labels_only", "label_scores", *OUTPUTS)


class ImageBatches:
    """Batches of images whose windows are encoded together; smaller ones from when memory runs out.

    Attributes:
        pixels_at_once: bound of the pixels of all windows that are encoded at once, from when memory ran out; before,
            it is None, and depends on the device.
        is_memory_short: whether memory ran out with single windows, see words_to_labels.
    """

    def __init__(self):
        self.pixels_at_once: int | None = None
        self.is_memory_short = False

    def windows_at_once(self, window_size: Sequence[int], device: torch.device) -> int:
        """Return how many windows of a size (height, width) are encoded at once."""
        on_device = _WINDOW_PIXELS_AT_ONCE_ON_CPU if device.type == "cpu" else _WINDOW_PIXELS_AT_ONCE
        pixels_at_once = self.pixels_at_once or on_device
        return max(1, min(_WINDOWS_AT_ONCE, pixels_at_once // math.prod(window_size)))

    def segment(
        self,
        function: Callable[[Sequence[dict]], list[dict]],
        batched_inputs: Sequence[dict],
        grid: "WindowGrid",
        device: torch.device,
        one_by_one: bool,
    ) -> list[dict]:
        """Segment images batch by batch, with smaller batches where memory runs out.

        Args:
            function: segments images whose windows have one size, and whose words are the same.
            batched_inputs: of the images, in Detectron2's format.
            grid: how windows are laid over them.
            device: the model's.
            one_by_one: whether a batch has one image only.
        """
        outputs: list[dict] = [{} for _ in batched_inputs]
        for indices in self._split(batched_inputs, grid, device, one_by_one):
            inputs = [batched_inputs[index] for index in indices]
            results = None
            try:
                results = function(inputs)
            except torch.OutOfMemoryError:
                if self.is_memory_short:
                    raise

            # Once the error, which holds memory, is gone
            if results is None:
                self._take_less_memory(inputs, grid, device)
                results = self.segment(function, inputs, grid, device, one_by_one)
            for index, result in zip(indices, results):
                outputs[index] = result
        return outputs

    def _split(
        self, batched_inputs: Sequence[dict], grid: "WindowGrid", device: torch.device, one_by_one: bool
    ) -> Iterator[list[int]]:
        """Yield the indices of the images of each batch: of one size of windows, and of the same words.

        Images are taken together as long as a batch has room for all of their windows, so that no more is held of
        several than of one.
        """
        groups = defaultdict(list)
        for index, input_per_image in enumerate(batched_inputs):
            request = [input_per_image.get(key) for key in _REQUEST]
            groups[grid.window_size(input_per_image), repr(request)].append(index)

        for (window_size, _), members in groups.items():
            batch, num_windows = [], 0
            for index in members:
                count = grid.num_windows(batched_inputs[index])
                if batch and (one_by_one or num_windows + count > self.windows_at_once(window_size, device)):
                    yield batch
                    batch, num_windows = [], 0
                batch.append(index)
                num_windows += count
            yield batch

    def _take_less_memory(self, batched_inputs: Sequence[dict], grid: "WindowGrid", device: torch.device) -> None:
        """Halve the windows that are encoded at once from now on, after memory ran out for these images."""
        torch.cuda.empty_cache()
        window_size = grid.window_size(batched_inputs[0])
        count = min(self.windows_at_once(window_size, device), sum(map(grid.num_windows, batched_inputs)))
        self.is_memory_short = count == 1
        count = max(1, count // 2)
        self.pixels_at_once = count * math.prod(window_size)

        # Say so
        measure = f"{count} windows at once"
        if self.is_memory_short:
            measure = "averages on the CPU, and windows encoded again for more words"
        sizes = [[*input_per_image["image"].shape[1:]] for input_per_image in batched_inputs]
        logger.warning("Memory ran out for images of %s; from now on %s: slower, same masks", sizes, measure)


class WindowGrid(NamedTuple):
    """How windows are laid over images; for both numbers see Windows."""

    crop_size: int
    stride: int

    def window_size(self, input_per_image: dict) -> tuple[int, int]:
        """Return height and width of an image's windows, in pixels."""
        height, width = map_size(input_per_image["image"])
        return (min(height, self.crop_size), min(width, self.crop_size)) if self.crop_size else (height, width)

    def num_windows(self, input_per_image: dict) -> int:
        """Return the number of an image's windows."""
        return len(window_slices(*map_size(input_per_image["image"]), self.crop_size, self.stride))
