"""The cost of an evaluation: seconds per image, and the peak of memory."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ..modeling import FrozenCLIP
from ..modeling.encoders.shared_results import SharedResults, synchronized_time
from ..utils.files import replacing
from ..utils.memory import process_peak
from .progress import fingerprint

COST = "cost.json"  # in OUTPUT_DIR


class CostMeter:
    """Measures a model while it segments, over several runs if need be.

    Attributes:
        seconds: time in the model, but for the first batch of each run.
        images: number of these images.
        peak_memory: the largest peak of a run in MB: of the GPU's memory, or on a CPU of all that the process holds.
        together: the most models that a run had in one process. The seconds that one of them has spared another count
            for both, but the peak of memory is of all of them.
    """

    def __init__(self, model: nn.Module, earlier: Mapping[str, float], together: int = 1):
        """Begin to measure, on top of the `state` of an earlier run with the same settings."""
        self.seconds = earlier.get("seconds", 0.0)
        self.images = earlier.get("images", 0)
        self.peak_memory = earlier.get("peak_memory", 0.0)
        self.together = earlier.get("together", 1)
        self._together = together
        clip = getattr(model, "clip", None)
        self._shared = clip.results if isinstance(clip, FrozenCLIP) else SharedResults()
        self._device = cast(torch.device, model.device)
        self._first: tuple[float, int] | None = None  # it takes longer, while libraries choose their ways
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def state(self) -> dict[str, float]:
        """Return the figures by attribute; those of the first batch if there was no other."""
        seconds, images, together = self.seconds, self.images, self.together
        if images and self._first is None:  # there was no other image
            return {"seconds": seconds, "images": images, "peak_memory": self.peak_memory, "together": together}
        on_gpu = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) / 2**20 if on_gpu else process_peak()
        if not images and self._first:
            seconds, images = self._first
        peak, together = max(peak, self.peak_memory), max(together, self._together)
        return {"seconds": seconds, "images": images, "peak_memory": peak, "together": together}

    def _start(self, *_: object) -> None:
        self._started = self._now()

    def _stop(self, _: nn.Module, inputs: tuple, outputs: list) -> None:
        seconds, images = self._now() - self._started, len(outputs)
        if self._first is None:
            self._first = seconds, images
        else:
            self.seconds += seconds
            self.images += images

    def _now(self) -> float:
        """Return a clock's seconds, on which those that others have spared the model have passed too."""
        return synchronized_time(self._device) + self._shared.spared


@contextmanager
def keep_cost(model: nn.Module, folder: Path, settings: Mapping, resume: bool, together: int = 1) -> Iterator[None]:
    """Write what a model costs in the block to a folder's COST, with `resume` on top of a run of the same settings.

    `together` is the number of models that are measured in this process at once.
    """
    mark = fingerprint("", settings=settings)
    earlier = read_cost(folder) if resume else {}
    meter = CostMeter(model, earlier if earlier.get("settings") == mark else {}, together)
    try:
        yield
    finally:
        with replacing(folder / COST) as unfinished:
            unfinished.write_text(json.dumps({"settings": mark, **meter.state()}, indent=1))


def read_cost(folder: Path) -> dict:
    """Return the cost of an evaluation in a folder; empty without one, or if its file is damaged."""
    try:
        content = json.loads((folder / COST).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
