"""From words and windows to labels: the scores of all words over images, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from ...words.vocabulary import WordSubset
from ..functional import map_size
from ..refiners.base import keep_scores
from .crops import CropMap, CropPlace, CropSegmentor
from .objects import OUTPUTS
from .score_rules import ScoreRule, ScoreSettings, build_score_rule
from .windows import Windows

# What bounds memory for any number of words, windows and pixels: so many windows are encoded at once (ImageBatches), so
# many words are scored at once in all of them, and of these so many bytes of scores are averaged at the result's size.
# Features are held if they are used again, unless memory has run out before: then scores wait on the CPU, too.
WORDS_AT_ONCE = 256
SCORE_BYTES_AT_ONCE = 64 * 2**20

Encode = Callable[[], Iterable[tuple]]  # gives the features of each batch of windows and their place, see encode_crops


def score_words(
    model: CropSegmentor,
    images: Sequence[Windows],
    encode: Encode,
    text: Tensor,
    subsets: Sequence[WordSubset],
    request: Mapping[str, Any],
) -> list[list[dict]]:
    """Segment images in windows of one size into the classes of datasets; return their outputs by image.

    Args:
        text: text features [W, D] of all words, whose scores the datasets share.
        request: an image's input, which says what is asked for.
    """
    # Features, and what is done with scores
    has_map = model.has_background_map and any(subset.background for subset in subsets)
    crops = partial(_prepare, model, encode, text)
    if (has_map or len(text) > WORDS_AT_ONCE or model.refines("windows")) and not model.is_memory_short:
        crops = hold(crops)
    refine_windows = _bind_window_refiner(model, images, crops, request)
    refiners = [_bind_refiner(model, "input", image, request) for image in images]
    enlargers = [_bind_enlarger(model, image, request) for image in images]
    backgrounds = [model.background_score] * len(images)
    if has_map:
        predict = partial(model.predict_background, words=_background_words(subsets).to(text.device))
        maps = _average(images, refine_windows(_predict(model, predict, crops())))
        backgrounds = [enlarge(refine(scores))[0] for refine, enlarge, scores in zip(refiners, enlargers, maps)]
    rules = [_build_rules(model, *parts, subsets, request) for parts in zip(images, backgrounds, enlargers)]

    # Words by chunks, in each of them windows by batches
    for words in _split(len(text), WORDS_AT_ONCE):
        predictions = _predict(model, partial(model.predict_masks, text=text, words=words), crops())
        predictions = list(refine_windows(predictions))
        for part in _split_by_bytes(words.stop - words.start, images):
            averages = _average(images, predictions, part)
            for refine, enlarge, image_rules, scores in zip(refiners, enlargers, rules, averages):
                scores = refine(scores) if model.join_words_first else enlarge(refine(scores))
                for rule in image_rules:
                    rule.update(scores)
    return [[rule.output() for rule in image_rules] for image_rules in rules]


def _prepare(model: CropSegmentor, encode: Encode, text: Tensor) -> Iterator[tuple]:
    return ((model.prepare(features, text), place) for features, place in encode())


def _predict(
    model: CropSegmentor, predict: Callable[..., Tensor], crops: Iterable[tuple[Any, CropPlace]]
) -> Iterator[CropMap]:
    """Yield the scores of each batch of windows, on the CPU where memory is short."""
    for features, place in crops:
        scores = predict(features)
        if model.enlarges_once:  # they are averaged as they are, over one window
            place = CropPlace(map_size(scores), (slice(None), slice(None)))
        yield CropMap(scores.cpu() if model.is_memory_short else scores, *place)


def hold(compute: Callable[[], Iterable]) -> Callable[[], Iterable]:
    """Compute once, and return a function that gives the results."""
    results = list(compute())
    return lambda: results


def _bind_window_refiner(
    model: CropSegmentor,
    images: Sequence[Windows],
    crops: Callable[[], Iterable[tuple]],
    input_per_image: Mapping[str, Any],
) -> Callable[[Iterable[CropMap]], Iterable[CropMap]]:
    """Return what refines the scores of all windows together, see Refiner."""
    if not model.refines("windows"):
        return lambda predictions: predictions
    (image,) = images
    pixels = torch.cat([features.images for features, _ in crops()])
    corners = torch.tensor([(rows.start, columns.start) for rows, columns in image.slices], device=pixels.device)
    if model.is_memory_short:
        pixels, corners = pixels.cpu(), corners.cpu()
    refine = model.bind_refiner("windows", pixels, input_per_image, corners)

    def refine_together(predictions: Iterable[CropMap]) -> list[CropMap]:
        predictions = list(predictions)
        scores = refine(torch.cat([prediction.values for prediction in predictions]))
        parts = scores.split([len(prediction.values) for prediction in predictions])
        return [prediction._replace(values=part) for prediction, part in zip(predictions, parts)]

    return refine_together


def _bind_enlarger(
    model: CropSegmentor, image: Windows, input_per_image: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Return what brings averages [K, H, W] of an image's windows to the result's size, and refines them there."""
    refine = _bind_refiner(model, "image", image, input_per_image)
    return lambda scores: refine(image.enlarge(scores))


def _background_words(subsets: Sequence[WordSubset]) -> Tensor:
    """Return the indices of the words of backgrounds, int64 [b]."""
    return torch.cat([subset.words[subset.classes == 0] for subset in subsets if subset.background])


def _bind_refiner(
    model: CropSegmentor, stage: str, image: Windows, input_per_image: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Return what refines scores [K, height, width] of an image at a stage, see Refiner."""
    if not model.refines(stage):
        return keep_scores
    pixels = image.image.cpu() if model.is_memory_short else image.image
    if stage != "input":
        pixels = image.enlarge(pixels)
    refine = model.bind_refiner(stage, pixels[None], input_per_image)
    return lambda scores: refine(scores[None])[0]


def _build_rules(
    model: CropSegmentor,
    image: Windows,
    background: float | Tensor,
    enlarge: Callable[[Tensor], Tensor],
    subsets: Sequence[WordSubset],
    request: Mapping[str, Any],
) -> list[ScoreRule]:
    """Build the rule of each dataset for an image."""
    keep_best = request.get("label_scores", False) or any(request.get(name) for name in OUTPUTS)
    settings = ScoreSettings(background, model.logit_scale, model.area_threshold, keep_best=keep_best)
    if model.join_words_first:
        settings = settings._replace(enlarge=enlarge)
    if model.refines("classes"):
        settings = settings._replace(refine=_bind_refiner(model, "classes", image, request))
    return [build_score_rule(subset, settings, request.get("labels_only", False)) for subset in subsets]


def _average(images: Iterable[Windows], predictions: Iterable[CropMap], words: slice = slice(None)) -> Iterator[Tensor]:
    """Yield the scores fp32 [k, H, W] of some words in each image, averaged over its windows."""
    scores = chain.from_iterable(prediction.enlarge(words) for prediction in predictions)
    for image in images:
        yield image.average(islice(scores, len(image.slices)))


def _split_by_bytes(count: int, images: Iterable[Windows]) -> list[slice]:
    """Split words into parts whose scores, over any of the images, fit into SCORE_BYTES_AT_ONCE."""
    sizes = [(*image.image.shape[-2:], *image.result_size) for image in images]
    bytes_per_word = 4 * max(max(height * width, rows * columns) for height, width, rows, columns in sizes)
    return _split(count, max(1, SCORE_BYTES_AT_ONCE // bytes_per_word))


def _split(count: int, at_once: int) -> list[slice]:
    return [slice(first, min(first + at_once, count)) for first in range(0, count, at_once)]
