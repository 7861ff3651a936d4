"""What an evaluation costs: seconds an image, and the peak of memory."""

import resource
import time
from collections.abc import Mapping

import torch
from torch import nn


class CostMeter:
    """Measures a model while it segments, over several runs if need be.

    Attributes:
        seconds: time in the model, of all images but the first batch of each run.
        images: number of these images.
        peak_memory: the largest peak of a run in MB: of the GPU's memory, or on a CPU of all that the process holds.
    """

    def __init__(self, model: nn.Module, earlier: Mapping[str, float]):
        """Begin to measure.

        Args:
            model: a zero-shot segmentor.
            earlier: the `state` of an earlier run with the same settings, to go on from; empty for none.
        """
        self.seconds = earlier.get("seconds", 0.0)
        self.images = earlier.get("images", 0)
        self.peak_memory = earlier.get("peak_memory", 0.0)
        self._device = model.device
        self._first: tuple[float, int] | None = None  # it takes longer, while libraries choose their ways
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def state(self) -> dict[str, float]:
        """Return what was measured so far, by attribute; of a single batch, where there was no other."""
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
