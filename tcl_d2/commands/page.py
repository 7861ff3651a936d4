"""The requests that the web page answers, with models that all visitors share."""

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from numbers import Real
from reprlib import repr as brief
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from ..data.benchmarks import benchmark_names
from ..modeling import FrozenCLIP
from ..modeling.refiners.base import Refiner
from ..modeling.refiners.build import build_refiner, refiner_names
from ..predictor import EncodedImage, TCLPredictor
from ..predictor.predictor import words_to_rank
from ..segmentation import Segmentation, drawing
from ..segmentation.regions import grow_mask
from ..utils.upstream import clicked
from ..words.parsing import as_lists, split_background_words, split_words
from ..words.specificity import SPECIFICITIES, at_specificity
from ..words.words import Words
from .model_options import TCL, method_names, with_method

try:
    import gradio as gr
except ImportError:
    sys.exit("error: the page needs gradio: pip install 'gradio>=6'")

logger = logging.getLogger(__name__)
MAX_MEGAPIXELS = 16
MAX_WORDS = 50
MAX_RANKED_WORDS = 200  # in a vocabulary to rank
LONGEST_SIDE = 1024  # pixels of the result that is shown
KEPT_SECONDS = 1800  # time that the results and files of an idle visitor are kept
KEPT_IMAGES = 4  # whose features are kept, of all visitors together
KEPT_BYTES = 160_000_000  # of these features, which a long picture has many of
TYPED_WORDS = "the words above"  # to rank for a region
Question = Callable[[TCLPredictor, EncodedImage, Words], Any]

# ------------------------------------------------------------------------------------------------- values


class NumberField(NamedTuple):
    """A number that a visitor gives: by a slider, which has no others, or by a program, which may send anything.

    Attributes:
        step: of the slider; 1 for whole numbers alone.
    """

    label: str
    lowest: float
    highest: float
    step: float

    def slider(self, value: float, **options: object) -> gr.Slider:
        """Return the slider, with a value."""
        return gr.Slider(self.lowest, self.highest, value, step=self.step, label=self.label, **options)

    def check(self, value: object) -> Real:
        """Return the value; gr.Error for one that is no number (NaN, a text, True) or out of the range."""
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        fits = is_number and self.lowest <= value <= self.highest and (self.step < 1 or value == int(value))
        kind = "a whole number" if self.step == 1 else "a number"
        _require(fits, self.label, value, f"{kind} from {self.lowest} to {self.highest}")
        return value


THRESHOLD = NumberField("Score of the background", 0, 1, step=0.01)
KP = NumberField("Share of CLIP's own masks", 0, 1, step=0.05)
SPECIFICITY = NumberField("From specific to general", 0, len(SPECIFICITIES) - 1, step=1)
COORDINATE = NumberField("Place of the click", -(10**6), 10**6, step=0.1)  # in pixels
REFINE = "Refine by the picture's edges"


def _require(fits: bool, label: str, value: object, expected: str) -> None:
    """Raise a gr.Error for the value of a field that the page itself does not send, but a program may."""
    if not fits:
        raise gr.Error(f"{label}: {brief(value)} was given; expected {expected}.")


def _require_one_of(names: list[str], label: str, value: object) -> None:
    _require(value in names, label, value, f"one of {', '.join(names)}")


@contextmanager
def _request(name: str) -> Iterator[dict[str, object]]:
    """Answer a request: errors of the input are shown as they are, any other as one sentence; the log has all.

    Yields:
        the line of the log, for what else is to be in it.
    """
    line, start = {"request": name, "outcome": "answered"}, time.monotonic()
    try:
        with _plain_errors():
            yield line
    except gr.Error as error:
        line["outcome"] = error.message
        raise
    finally:
        logger.info({**line, "seconds": round(time.monotonic() - start, 3)})


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except (OSError, ValueError) as error:
        raise gr.Error(str(error)) from None
    except Exception:
        logger.exception("A request to the page failed")
        raise gr.Error(
            "This failed; the log of the page's server says why. Try another picture, words or settings."
        ) from None


class ModelSettings(NamedTuple):
    """A visitor's choice of a model.

    Attributes:
        method: one of method_names.
        threshold: score of the background.
        kp: share of CLIP's own masks, if the method has them.
        refine: one of Page.refiners.
    """

    method: str
    threshold: float
    kp: float
    refine: str


class Result(NamedTuple):
    """A visitor's last result, as it is kept: at the size that is shown, with scores uint8."""

    segmentation: Segmentation
    path: str
    words: Words
    settings: ModelSettings


# ------------------------------------------------------------------------------------------------- the page


class Page:
    """Answers requests, with models that all visitors share; their requests are computed one after another.

    Attributes:
        methods: (label, name) of each method, see method_names.
        refiners: values of TEST.ZERO_SHOT.REFINE that can be used here.
        stopping: whether requests that still wait for the model are refused.
    """

    def __init__(self, predictor: TCLPredictor, max_megapixels: int = MAX_MEGAPIXELS):
        """Begin with the model of the configuration; those of other methods share its CLIP."""
        self.stopping = False
        self.refiners = [name for name in refiner_names() if _has_refiner(predictor.cfg, name)]
        labels = {TCL: predictor.cfg.MODEL.META_ARCHITECTURE}
        names = method_names() if isinstance(predictor.model.clip, FrozenCLIP) else [TCL]  # the others need a CLIP
        self.methods = [(labels.get(name, name), name) for name in names]
        self._predictors = {TCL: predictor}
        self._images: OrderedDict[tuple, EncodedImage] = OrderedDict()  # the last one that was used at the end
        self._building = Lock()
        # Each thread would keep memory of its own that it has freed; one of ThreadPool's holds up no process that ends
        self._thread = ThreadPool(1)
        self._max_megapixels = max_megapixels

    def predictor(self, method: str) -> TCLPredictor:
        """Return the predictor of a method, which is built once; see TCLPredictor.with_dense_head for errors."""
        _require_one_of([name for _, name in self.methods], "Method", method)
        with self._building:
            if method not in self._predictors:
                self._predictors[method] = with_method(self._predictors[TCL], method)
            return self._predictors[method]

    @_request("settings")
    def settings(self, method: str) -> tuple[gr.Slider, gr.Slider, gr.Dropdown]:
        """Return the fields threshold, kp and refine of the form, see `segment`, with the values of a method."""
        predictor = self.predictor(method)
        test, has_kp = predictor.cfg.TEST.ZERO_SHOT, hasattr(predictor.model, "kp_weight")
        return (
            THRESHOLD.slider(test.BACKGROUND_SCORE, elem_id="threshold"),
            KP.slider(test.KP_WEIGHT, visible=has_kp),
            gr.Dropdown(self.refiners, value=test.REFINE, label=REFINE),
        )

    def segment(
        self,
        path: str | None,
        words: list[str] | None,
        background: bool,
        background_words: str,
        method: str,
        threshold: float,
        kp: float,
        refine: str,
        specificity: int = 1,
    ) -> Result:
        """Look for words in a picture; gr.Error, which the page shows, for values that its fields cannot have.

        Args:
            words, background, background_words, specificity: see read_words.
            method, threshold, kp, refine: see ModelSettings.
        """
        with _request("segment") as line:
            # Check the input
            if not path:
                raise gr.Error("Give a picture first.")
            settings = ModelSettings(method, THRESHOLD.check(threshold), KP.check(kp), refine)
            _require_one_of(self.refiners, REFINE, refine)
            request = read_words(words, background, background_words, SPECIFICITY.check(specificity))
            line["words"] = request.count

            # Segment with the visitor's settings
            segmentation = self._ask_model(path, settings, request, TCLPredictor.__call__)
            line["size"] = segmentation.labels.shape[::-1]
            segmentation.scores = segmentation.scores.mul_(255).round_().byte()  # a quarter of the memory
            return Result(segmentation, path, request, settings)

    @_request("heat_map")
    def heat_map(self, result: Result | None, event: gr.EventData) -> gr.Image:
        """Draw the heat map of the word that was clicked."""
        segmentation, word = _check_result(result).segmentation, clicked(event).get("value")
        _require_one_of(segmentation.classes, "The word", word)
        picture = drawing.enlarge(segmentation.draw_heat_map(word))
        return gr.Image(picture, label=f"Score of '{word}': blue 0, red 1", visible=True)

    def rank(self, result: Result | None, words: str | None, event: gr.EventData) -> tuple[np.ndarray, gr.Label]:
        """Rank words for the region that was clicked, see Segmentation.region and TCLPredictor.rank_words.

        Args:
            words: to be ranked: TYPED_WORDS, the name of a benchmark, or words.

        Returns:
            the picture of the regions, dark but for this one; and the words with their scores, the best first.
        """
        with _request("rank") as line:
            # Check the input
            segmentation = _check_result(result).segmentation
            x, y = _clicked_pixel(event, segmentation)
            region = segmentation.region(x, y)
            _require(isinstance(words or "", str), "Words to compare there", words, "a text, with commas between words")
            words = words_to_rank(result.words if words == TYPED_WORDS else words or "")
            line["words"], line["size"] = words.count, segmentation.labels.shape[::-1]
            if not 1 <= words.count <= MAX_RANKED_WORDS:
                raise gr.Error(
                    f"Give 1 to {MAX_RANKED_WORDS} words to compare, or a benchmark of so many; not {words.count}."
                )

            # Rank them
            ranking = self._ask_model(
                result.path,
                result.settings,
                words,
                lambda predictor, encoded, words: predictor.rank_words(encoded, region, words),
            )
            name = segmentation.classes[segmentation.labels[y, x]]
            place = f"the point ({x}, {y})" if region.sum() == 1 else f"this region of '{name}'"
            picture = drawing.darken_around(segmentation.draw_classes(), drawing.enlarge(grow_mask(region)))
            return picture, gr.Label(ranking, label=f"Scores in {place}", visible=True)

    # --------------------------------------------------------------------------------------------- models

    def _ask_model(self, path: str, settings: ModelSettings, words: Words, question: Question) -> Any:
        """Return what a predictor with a visitor's settings answers, and show what it warns of about the words."""
        answer, warnings = self._thread.apply(self._answer, (path, settings, words, question))
        for message in warnings:
            gr.Warning(message)
        return answer

    def _answer(self, path: str, settings: ModelSettings, words: Words, question: Question) -> tuple[Any, list[str]]:
        if self.stopping:
            raise gr.Error("The page's server is being stopped: ask again in a few minutes.")
        predictor = self.predictor(settings.method)
        model = predictor.model
        model.background_score = settings.threshold
        model.refiner = _build_refiner(predictor.cfg, settings.refine)
        if hasattr(model, "kp_weight"):
            model.kp_weight = settings.kp
        try:
            return question(predictor, self._encode(path, settings), words), predictor.warnings(words)
        finally:
            self._drop_images()

    def _encode(self, path: str, settings: ModelSettings) -> EncodedImage:
        """Return the picture encoded by a method; the features of the last few are kept."""
        key = (path, settings.method, settings.refine, settings.kp > 0)  # what the features depend on
        if key not in self._images:
            try:
                with Image.open(path) as image:
                    if image.width * image.height > 1_000_000 * self._max_megapixels:
                        size = f"{image.width} x {image.height}"
                        raise ValueError(f"The picture has {size} pixels; at most {self._max_megapixels} million work.")
                self._images[key] = self._predictors[settings.method].encode(path, LONGEST_SIDE)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(str(error).replace(path, "the file")) from None
        self._images.move_to_end(key)
        return self._images[key]

    def _drop_images(self) -> None:
        """Drop the pictures that were used longest ago, until few are left, and few bytes of features."""
        while len(self._images) > KEPT_IMAGES or sum(map(feature_bytes, self._images.values())) > KEPT_BYTES:
            self._images.popitem(last=False)


def feature_bytes(image: EncodedImage) -> int:
    """Return the memory of the features of a picture in bytes; they are there once it was segmented."""
    values = [value for features, _ in image.inputs["kept_crops"] for value in features]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _build_refiner(cfg: CfgNode, name: str) -> Refiner | None:
    cfg = cfg.clone()
    cfg.TEST.ZERO_SHOT.REFINE = name
    return build_refiner(cfg)


def _has_refiner(cfg: CfgNode, name: str) -> bool:
    """Return whether a refiner can be built here: some need an optional package, or a file of the configuration's."""
    try:
        _build_refiner(cfg, name)
    except (OSError, RuntimeError, ValueError):
        return False
    return True


# ------------------------------------------------------------------------------------------------- words and clicks


def read_words(words: list[str] | None, background: bool, background_words: str, specificity: int) -> Words:
    """Read the words that a visitor asks for.

    Args:
        words: each a text of one or several classes, see split_words, of negative words, or with a parent.
        background: whether pixels that no word fits well are background.
        background_words: "sky, wall": there is a background in any case then.
        specificity: index into SPECIFICITIES.

    Raises:
        gr.Error, ValueError: no words, too many, or of another type, or see Words.read.
    """
    # Check their types
    entries = [] if words is None else words
    are_texts = isinstance(entries, (list, tuple)) and all(isinstance(entry, str) for entry in entries)
    _require(are_texts, "Words", words, "a list of texts, such as ['red apple', 'table']")
    _require(isinstance(background, bool), "The rest is background", background, "true or false")
    _require(isinstance(background_words, str), "Words of the background", background_words, "a text")

    # Each class once
    classes = split_words(",".join(entries))
    classes = list({tuple(words): entry for words, entry in zip(as_lists(classes), classes)}.values())
    if not classes:
        raise gr.Error("Give at least one word to look for.")
    classes = at_specificity(classes, SPECIFICITIES[int(specificity)])
    request = Words.read(classes, split_background_words(background_words) or background)
    if request.count > MAX_WORDS:
        raise gr.Error(f"At most {MAX_WORDS} words at once, not {request.count}.")
    return request


def _clicked_pixel(event: gr.EventData, segmentation: Segmentation) -> tuple[int, int]:
    """Return the pixel (x, y) of the image for a click on its enlarged picture."""
    point = clicked(event).get("index")
    _require(isinstance(point, (list, tuple)) and len(point) == 2, COORDINATE.label, point, "x and y")
    factor = drawing.enlarging_factor(segmentation.image)
    x, y = (int(COORDINATE.check(coordinate)) // factor for coordinate in point)
    return x, y


def _check_result(result: Result | None) -> Result:
    if result is None:
        raise gr.Error(f"Segment the picture first: results are kept for {KEPT_SECONDS // 60} minutes.")
    return result


# ------------------------------------------------------------------------------------------------- drawing


def draw_masks(segmentation: Segmentation) -> tuple[tuple[np.ndarray, list], dict[str, str]]:
    """Return the image with the mask of each class in it, as gr.AnnotatedImage takes them, and the classes' colors."""
    image, labels = drawing.enlarge(segmentation.image), drawing.enlarge(segmentation.labels)
    visible = [index for index in np.unique(labels) if index not in segmentation.plain_classes()]
    masks = [(labels == index, segmentation.classes[index]) for index in visible]
    colors = segmentation.colors()
    return (image, masks), {segmentation.classes[index]: "#" + bytes(colors[index]).hex() for index in visible}


def area_changes(former: Result | None, result: Result) -> list[list[str]]:
    """Return rows of a word, its area in a former result of the same picture, now, and the difference, in percent."""
    if former is None or former.path != result.path:
        return []

    rows = []
    for name, (before, now) in result.segmentation.area_changes(former.segmentation).items():
        rows.append([name, f"{100 * before:.1f}", f"{100 * now:.1f}", f"{100 * (now - before):+.1f}"])
    return rows


def rankable_benchmarks() -> list[str]:
    """List the benchmarks whose words can be ranked on the page."""
    return [name for name in benchmark_names() if words_to_rank(name).count <= MAX_RANKED_WORDS]
