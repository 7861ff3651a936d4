"""The cost of an evaluation: seconds per image, and the peak of memory."""

import json
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ..utils.files import replacing
from .progress import fingerprint

COST = "cost.json"  # in OUTPUT_DIR


class CostMeter:
    """Measures a model while it segments, over several runs if need be.

    Attributes:
        seconds: time in the model, but for the first batch of each run.
        images: number of these images.
        peak_memory: the largest peak of a run in MB: of the GPU's memory, or on a CPU of all that the process holds.
    """

    def __init__(self, model: nn.Module, earlier: Mapping[str, float]):
        """Begin to measure, on top of the `state` of an earlier run with the same settings."""
        self.seconds = earlier.get("seconds", 0.0)
        self.images = earlier.get("images", 0)
        self.peak_memory = earlier.get("peak_memory", 0.0)
        self._device = cast(torch.device, model.device)
        self._first: tuple[float, int] | None = None  # it takes longer, while libraries choose their ways
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def state(self) -> dict[str, float]:
        """Return the figures by attribute; those of the first batch if there was no other."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # kB on Linux
        seconds, images = self.seconds, self.images
        if not images and self._first:
            seconds, images = self._first
        return {"seconds": seconds, "images": images, "peak_memory": max(peak, self.peak_memory)}

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
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@contextmanager
def keep_cost(model: nn.Module, folder: Path, settings: Mapping, resume: bool) -> Iterator[None]:
    """Write what a model costs in the block to a folder's COST, with `resume` on top of a run of the same settings."""
    mark = fingerprint("", settings=settings)
    earlier = read_cost(folder) if resume else {}
    meter = CostMeter(model, earlier if earlier.get("settings") == mark else {})
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
