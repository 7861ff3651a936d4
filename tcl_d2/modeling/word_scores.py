"""WordScores: the scores of words over whole images, some words at a time, so that memory is bounded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from torch import Tensor

from .crop_segmentor import CropPrediction, CropSegmentor
from .image_batches import ImageBatches
from .inference import Windows, average_windows, resize_scores, split_by_bytes, split_by_count
from .refiner import keep_scores


class WordScores:
    """Predicts the scores of words in the windows of images, and averages them at the size of the results.

    What is computed again and again is held only where it is used again: the crops' features where there are more words
    than are predicted at once, their scores, which are much smaller, where fewer of them than that fit at the result's
    size. Where memory is short nothing is held.
    """

    def __init__(
        self,
        model: CropSegmentor,
        windows: Sequence[Windows],
        encode: Callable[[], Iterable[tuple]],
        text: Tensor,
        batches: ImageBatches,
        needs_background: bool,
    ):
        """Bind the model to images and words.

        Args:
            model: predicts scores in crops.
            windows: of each image.
            encode: gives of each batch of windows the features and their place, see encode_crops.
            text: text features of all words [W, D].
            batches: says what is held.
            needs_background: whether `background` will be asked for.
        """
        self.model = model
        self.windows = windows
        self.text = text
        self.batches = batches
        self._refiners = [self.bind_refiner("image", image_windows) for image_windows in windows]
        self._words = split_by_count(len(text))

        def prepare() -> Iterator[tuple]:
            return ((model.prepare(features, text), place) for features, place in encode())

        is_used_again = needs_background or len(self._words) > 1
        self._crops = batches.hold(prepare) if is_used_again else prepare

    def background(self) -> list[Tensor]:
        """Return the model's own scores of the background in each image, fp32 [height, width]."""
        scores = self._average(self._predict(self.model.predict_background))
        return [image_scores[0] for image_scores in scores]

    def __iter__(self) -> Iterator[Iterator[Tensor]]:
        """Yield of some words after the others the scores in each image, refined, fp32 [k, height, width]."""
        for words in self._words:
            predict = partial(self._predict, partial(self.model.predict_masks, text=self.text, words=words))
            parts = split_by_bytes(words.stop - words.start, self.windows)
            if len(parts) > 1:
                predict = self.batches.hold(predict)
            for part in parts:
                yield self._average(predict(), part)

    def bind_refiner(self, stage: str, windows: Windows) -> Callable[[Tensor], Tensor]:
        """Return what refines scores [K, height, width] of an image at a stage, see Refiner."""
        if not self.model.refines(stage):
            return keep_scores
        image = windows.image.cpu() if self.batches.is_memory_short else windows.image
        refine = self.model.bind_refiner(stage, resize_scores(image[None], windows.result_size))
        return lambda scores: refine(scores[None])[0]

    def _predict(self, predict: Callable[..., Tensor]) -> Iterator[CropPrediction]:
        """Yield what `predict` makes of the features of each batch of crops."""
        for features, place in self._crops():
            yield CropPrediction(predict(features), features.images.shape[-2:], place)

    def _average(self, predictions: Iterable[CropPrediction], words: slice = slice(None)) -> Iterator[Tensor]:
        """Yield of each image the average of some words' scores over its windows, refined."""
        batches = (prediction.enlarge(words) for prediction in predictions)
        if self.batches.is_memory_short:
            batches = map(Tensor.cpu, batches)

        for refine, scores in zip(self._refiners, average_windows(self.windows, batches)):
            yield refine(scores)
