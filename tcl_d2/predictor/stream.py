"""Many images through a model: in batches, with the results in their order."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from ..modeling import ZeroShotSegmentor
from ..segmentation import Segmentation
from ..words.words import Words

_RESULT_BYTES_AT_ONCE = 256 * 2**20  # of images that are segmented together


class Reading(NamedTuple):
    """An image that was read.

    Attributes:
        image: as it was given.
        pixels: at the result's size, RGB uint8 [H, W, 3].
        inputs: the model's, see model_input.
    """

    image: object
    pixels: np.ndarray
    inputs: dict


class Request(TypedDict):
    """What each image is asked for: entries of a model's input, see ZeroShotSegmentor.forward."""

    vocabulary: Words
    labels_only: bool
    label_scores: bool


def segment_stream(
    model: ZeroShotSegmentor, readings: Iterable[Reading | OSError | ValueError], request: Request, batch_size: int
) -> Iterator[Segmentation | OSError | ValueError]:
    """Yield the segmentations of images; in place of one that cannot be read or segmented, its error.

    A batch has `batch_size` images, or fewer if they are large.
    """
    bytes_per_pixel = 4 * (1 + len(request["vocabulary"].classes))
    if request["labels_only"]:
        bytes_per_pixel = 8 + 4 * request["label_scores"]
    for batch in _batch_readings(readings, batch_size, _RESULT_BYTES_AT_ONCE // bytes_per_pixel):
        yield from _segment_in_memory(model, request, batch)


def _batch_readings(
    readings: Iterable[Reading | OSError | ValueError], batch_size: int, max_pixels: int
) -> Iterator[list[Reading | OSError | ValueError]]:
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
    model: ZeroShotSegmentor, request: Request, batch: Sequence[Reading | OSError | ValueError]
) -> list[Segmentation | OSError | ValueError]:
    """Segment a batch; where memory runs out, image by image, with an error for one that is too large."""
    try:
        return _segment(model, request, batch)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise

    # Once the error, which holds memory, is gone
    if len(batch) > 1:
        return [_segment_in_memory(model, request, [reading])[0] for reading in batch]
    reading = cast(Reading, batch[0])
    height, width = reading.pixels.shape[:2]
    name = reading.image if isinstance(reading.image, (str, Path)) else "an image"
    message = f"memory ran out for {name} of {width} x {height} pixels: shrink it, or ask for a longest_side"
    return [ValueError(message)]


def _is_out_of_memory(error: Exception) -> bool:
    # For the memory of the CPU, torch has no type of error
    is_type = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_type or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _segment(
    model: ZeroShotSegmentor, request: Request, batch: Sequence[Reading | OSError | ValueError]
) -> list[Segmentation | OSError | ValueError]:
    inputs = [{**reading.inputs, **request} for reading in batch if isinstance(reading, Reading)]
    with torch.no_grad():
        outputs = iter(model(inputs))
    return [
        _make_segmentation(reading, request, next(outputs), model) if isinstance(reading, Reading) else reading
        for reading in batch
    ]


def _make_segmentation(
    reading: Reading, request: Request, output: dict[str, Tensor], model: ZeroShotSegmentor
) -> Segmentation:
    """Make the segmentation of an image, on the CPU, from a model's output."""
    words = request["vocabulary"]
    scores = None if request["labels_only"] else output["sem_seg"].float().cpu()
    labels = output["sem_seg_labels"].cpu() if scores is None else scores.argmax(0)
    return Segmentation(
        reading.pixels,
        words.names,
        labels.numpy(),
        words.has_background,
        scores,
        negative=bool(words.negative),
        label_scores=output["sem_seg_scores"].cpu().numpy() if request["label_scores"] else None,
        components=model.components,
    )
