"""Many images through a model: in batches, with the results in their order."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .modeling import ZeroShotSegmentor
from .segmentation import Segmentation
from .utils.images import ImageLike
from .utils.words import result_names

_RESULT_BYTES_AT_ONCE = 256 * 2**20  # of images that are segmented together


class Reading(NamedTuple):
    """An image that was read.

    Attributes:
        image: what it was read from.
        pixels: at the result's size, RGB uint8 [H, W, 3].
        inputs: what the model takes of it, see model_input.
    """

    image: ImageLike
    pixels: np.ndarray
    inputs: dict


class Request(NamedTuple):
    """What a model is asked for, with each image; see ZeroShotSegmentor.forward.

    Attributes:
        vocabulary: the word or the words of each class, without the background.
        background: whether there is one, or its words.
        negative: negative words.
        labels_only: whether labels are wanted in place of scores.
        label_scores: whether labels come with the score of each pixel's class.
    """

    vocabulary: list[str | list[str]]
    background: bool | Sequence[str]
    negative: list[str]
    labels_only: bool
    label_scores: bool

    @property
    def has_background(self) -> bool:
        return self.background is not False

    @property
    def bytes_per_pixel(self) -> int:
        """The memory of a result."""
        if self.labels_only:
            return 8 + 4 * self.label_scores
        return 4 * (1 + len(self.vocabulary))


def segment_stream(
    model: ZeroShotSegmentor,
    readings: Iterable[Reading | Exception],
    request: Request,
    batch_size: int,
) -> Iterator[Segmentation | Exception]:
    """Yield the segmentations of images, and in the place of one that cannot be read or segmented its error.

    Args:
        model: the model.
        readings: the images; may be endless.
        request: what the model is asked for.
        batch_size: greatest number of images in a batch, as large images make smaller ones.
    """
    max_pixels = _RESULT_BYTES_AT_ONCE // request.bytes_per_pixel
    for batch in _batch_readings(readings, batch_size, max_pixels):
        yield from _segment_in_memory(model, request, batch)


def _batch_readings(
    readings: Iterable[Reading | Exception], batch_size: int, max_pixels: int
) -> Iterator[list[Reading | Exception]]:
    """Group images in their order: so many, or fewer where their results have `max_pixels` together."""
    batch, num_pixels = [], 0
    for reading in readings:
        batch.append(reading)
        if isinstance(reading, Reading):
            num_pixels += reading.pixels.shape[0] * reading.pixels.shape[1]
        if len(batch) == batch_size or num_pixels >= max_pixels:
            yield batch
            batch, num_pixels = [], 0
    if batch:
        yield batch


def _segment_in_memory(
    model: ZeroShotSegmentor, request: Request, batch: Sequence[Reading | Exception]
) -> list[Segmentation | Exception]:
    """Segment a batch; where memory runs out, image by image, with an error for one that is too large."""
    try:
        return list(_segment(model, request, batch))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise

    # Once the error, which holds memory, is gone
    if len(batch) > 1:
        return [_segment_in_memory(model, request, [reading])[0] for reading in batch]
    (reading,) = batch
    height, width = reading.pixels.shape[:2]
    name = reading.image if isinstance(reading.image, (str, Path)) else "an image"
    message = f"memory ran out for {name} of {width} x {height} pixels: shrink it, or ask for a longest_side"
    return [ValueError(message)]


def _is_out_of_memory(error: Exception) -> bool:
    # For the memory of the CPU, torch has no type of error
    is_type = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_type or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _segment(
    model: ZeroShotSegmentor, request: Request, batch: Sequence[Reading | Exception]
) -> Iterator[Segmentation | Exception]:
    """Segment the images of a batch, and yield the results, with errors in their places."""
    inputs = [reading.inputs | request._asdict() for reading in batch if isinstance(reading, Reading)]
    with torch.no_grad():
        outputs = iter(model(inputs))

    names = result_names(request.vocabulary, request.has_background, request.negative)
    for reading in batch:
        if isinstance(reading, Reading):
            yield _make_segmentation(reading, request, names, next(outputs), model)
        else:
            yield reading


def _make_segmentation(
    reading: Reading, request: Request, names: list[str], output: dict[str, Tensor], model: ZeroShotSegmentor
) -> Segmentation:
    """Make the segmentation of an image, on the CPU, of a model's output."""
    scores = None if request.labels_only else output["sem_seg"].float().cpu()
    labels = output["sem_seg_labels"].cpu() if scores is None else scores.argmax(0)
    return Segmentation(
        reading.pixels,
        names,
        labels.numpy(),
        request.has_background,
        scores,
        negative=bool(request.negative),
        label_scores=output["sem_seg_scores"].cpu().numpy() if request.label_scores else None,
        components=model.components,
    )
