"""Serve a web page: a picture and words in, masks out.

tcl-d2 app                      # the small world's model, http://127.0.0.1:7860
tcl-d2 app --model official     # the official tcl.pth
tcl-d2 app --method sclip       # begin with its CLIP alone; the page has all methods to choose from
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from ..data.benchmarks import benchmark_names
from ..data.shapes import GROUNDS, OBJECTS, draw_scene
from ..modeling import FrozenCLIP
from ..modeling.refiner import Refiner, build_refiner, refiner_names
from ..predictor import EncodedImage, TCLPredictor, words_to_rank
from ..segmentation import Segmentation
from ..utils import visualizer
from ..utils.errors import one_message
from ..utils.regions import grow_mask
from ..utils.specificity import SPECIFICITIES, at_specificity
from ..utils.words import as_lists, split_background_words, split_words
from .model_options import TCL, add_model_options, method_names, read_model, with_method

try:
    import gradio as gr
except ImportError:
    sys.exit("error: the page needs gradio: pip install 'gradio>=6'")

MAX_PIXELS = 16_000_000
MAX_WORDS = 50
MAX_RANKED_WORDS = 200  # among which a region's are looked for
SHOWN_RANKED_WORDS = 8
LONGEST_SIDE = 1024  # pixels of the result that is shown
KEPT_SECONDS = 1800  # time that the results and files of an idle visitor are kept
KEPT_IMAGES = 4  # whose features are kept, of all visitors together
TYPED_WORDS = "the words above"  # to rank for a region
INTRODUCTION = """# TCL: name it, see it
Give a picture and the words to look for. Point at a word of the result to see its mask alone; click it for its scores.
Click a region to see which words fit it best.
Compare the trained model with methods that use its CLIP without training.
The model that comes with the project only knows a small world of textures: for photos, start the page
with your weights.
"""


class ModelSettings(NamedTuple):
    """A visitor's choice of a model.

    Attributes:
        method: one of method_names.
        threshold: score of the background.
        kp: share of CLIP's own masks, where the method has them.
        refine: one of Page.refiners.
    """

    method: str
    threshold: float
    kp: float
    refine: str


class Result(NamedTuple):
    """What is kept of a visitor's last result.

    Attributes:
        segmentation: at the size that is shown, its scores uint8.
        path: of the picture.
        words: what was looked for, a vocabulary.
        settings: by which it was made.
    """

    segmentation: Segmentation
    path: str
    words: list[str | list[str]]
    settings: ModelSettings


class Page:
    """What the page does, with models that all its visitors share (their requests wait for each other).

    Attributes:
        methods: (label, name) of each method, see method_names.
        refiners: values of TEST.ZERO_SHOT.REFINE that can be used here.
    """

    def __init__(self, predictor: TCLPredictor):
        """Begin with the model of the configuration; those of other methods share its CLIP.

        Args:
            predictor: of the configuration.
        """
        self.refiners = [name for name in refiner_names() if _has_refiner(predictor.cfg, name)]
        labels = {TCL: predictor.cfg.MODEL.META_ARCHITECTURE}
        names = method_names() if isinstance(predictor.model.clip, FrozenCLIP) else [TCL]  # the others need a CLIP
        self.methods = [(labels.get(name, name), name) for name in names]
        self._predictors = {TCL: predictor}
        self._images: OrderedDict[tuple, EncodedImage] = OrderedDict()  # the last one that was used at the end
        self._lock = Lock()

    def predictor(self, method: str) -> TCLPredictor:
        """Return the predictor of a method, which is built once; see TCLPredictor.with_dense_head for errors."""
        if method not in self._predictors:
            self._predictors[method] = with_method(self._predictors[TCL], method)
        return self._predictors[method]

    def settings(self, method: str) -> tuple[gr.Slider, gr.Slider, gr.Dropdown]:
        """Return the fields threshold, kp and refine of the form, see `segment`, with the values of a method."""
        try:
            predictor = self.predictor(method)
        except (OSError, ValueError) as error:
            raise gr.Error(str(error)) from None

        test, has_kp = predictor.cfg.TEST.ZERO_SHOT, hasattr(predictor.model, "kp_weight")
        return (
            gr.Slider(0, 1, test.BACKGROUND_SCORE, step=0.01, label="Score of the background", elem_id="threshold"),
            gr.Slider(0, 1, test.KP_WEIGHT, step=0.05, label="Share of CLIP's own masks", visible=has_kp),
            gr.Dropdown(self.refiners, value=test.REFINE, label="Refine by the picture's edges"),
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
    ) -> tuple[tuple[np.ndarray, list], Result, dict, str]:
        """Look for the words in the picture.

        Args:
            path: of the picture.
            words: class words; each may be a text of several classes, see split_words, of negative words, or have a
                parent, see at_specificity.
            background: whether pixels that no word fits well are background.
            background_words: words of the background, which there is then in any case; see split_background_words.
            method: see ModelSettings.
            threshold: see ModelSettings.
            kp: see ModelSettings.
            refine: see ModelSettings.
            specificity: index into SPECIFICITIES.

        Returns:
            - the image and a mask of each class in it, as gr.AnnotatedImage takes them;
            - the result, to be kept for heat maps and regions;
            - the color of each class in it, "#rrggbb";
            - the areas of the classes, as text.

        Raises:
            gr.Error: no picture, no words, too large, or unreadable; is shown on the page.
        """
        # Check the input
        words = split_words(",".join(words or []))
        words = [entry for index, entry in enumerate(words) if entry not in words[:index]]
        if path is None:
            raise gr.Error("Give a picture first.")
        if not words:
            raise gr.Error("Give at least one word to look for.")
        try:
            words = at_specificity(words, SPECIFICITIES[specificity])
        except ValueError as error:
            raise gr.Error(str(error)) from None
        background_words = split_background_words(background_words)
        num_words = sum(map(len, as_lists(words))) + len(background_words)
        if num_words > MAX_WORDS:
            raise gr.Error(f"At most {MAX_WORDS} words at once, not {num_words}.")

        # Segment with the visitor's settings
        settings = ModelSettings(method, threshold, kp, refine)
        with self._lend(path, settings) as (predictor, encoded):
            segmentation = predictor(encoded, words, background_words or background)
        segmentation.scores = segmentation.scores.mul_(255).round_().byte()  # a quarter of the memory

        # Make what the page shows
        image, labels = visualizer.enlarge(segmentation.image), visualizer.enlarge(segmentation.labels)
        visible = [index for index in np.unique(labels) if index not in segmentation.plain_classes()]
        masks = [(labels == index, segmentation.classes[index]) for index in visible]
        class_colors = segmentation.colors()
        colors = {segmentation.classes[index]: "#{:02x}{:02x}{:02x}".format(*class_colors[index]) for index in visible}
        areas = ", ".join(f"{name} {100 * area:.0f} %" for name, area in segmentation.areas().items() if area > 0)
        return (image, masks), Result(segmentation, path, words, settings), colors, areas

    def heat_map(self, result: Result | None, event: gr.SelectData) -> gr.Image:
        """Draw the heat map of the word that was clicked."""
        segmentation = _check_result(result).segmentation
        picture = visualizer.enlarge(segmentation.draw_heat_map(event.value))
        return gr.Image(picture, label=f"Score of '{event.value}': blue 0, red 1", visible=True)

    def rank(self, result: Result | None, words: str | None, event: gr.SelectData) -> tuple[np.ndarray, gr.Label]:
        """Rank words for the region that was clicked, see Segmentation.region and TCLPredictor.rank_words.

        Args:
            result: the visitor's last one.
            words: to be ranked: TYPED_WORDS, the name of a benchmark, or words.
            event: has the pixel of the picture of the regions.

        Returns:
            the picture of the regions, dark but for this one; and the words that fit it best, with their scores.

        Raises:
            gr.Error: no result, no or too many words, an unknown benchmark, or a click outside the picture.
        """
        # Check the input
        segmentation = _check_result(result).segmentation
        factor = visualizer.enlarging_factor(segmentation.image)
        x, y = (int(coordinate) // factor for coordinate in event.index)
        try:
            region = segmentation.region(x, y)
            classes = result.words if words == TYPED_WORDS else words_to_rank(words or "")
        except ValueError as error:
            raise gr.Error(str(error)) from None
        num_words = sum(map(len, as_lists(classes)))
        if not 1 <= num_words <= MAX_RANKED_WORDS:
            raise gr.Error(
                f"Give 1 to {MAX_RANKED_WORDS} words to compare, or a benchmark of so many; not {num_words}."
            )

        # Rank them
        with self._lend(result.path, result.settings) as (predictor, encoded):
            ranking = predictor.rank_words(encoded, region, classes)
        name = segmentation.classes[segmentation.labels[y, x]]
        place = f"the point ({x}, {y})" if region.sum() == 1 else f"this region of '{name}'"
        picture = visualizer.darken_around(segmentation.draw_classes(), visualizer.enlarge(grow_mask(region)))
        return picture, gr.Label(ranking, label=f"Scores in {place}", visible=True)

    @contextmanager
    def _lend(self, path: str, settings: ModelSettings) -> Iterator[tuple[TCLPredictor, EncodedImage]]:
        """Lend the predictor with a visitor's settings, and the picture encoded by it, to one visitor at a time.

        Raises:
            gr.Error: the method cannot be built, the picture is too large or unreadable, or what is done cannot be.
        """
        try:
            predictor = self.predictor(settings.method)
            with self._lock:
                model = predictor.model
                model.background_score = settings.threshold
                model.refiner = _build_refiner(predictor.cfg, settings.refine)
                if hasattr(model, "kp_weight"):
                    model.kp_weight = settings.kp
                yield predictor, self._encode(path, settings)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise gr.Error(str(error).replace(path, "the file")) from None

    def _encode(self, path: str, settings: ModelSettings) -> EncodedImage:
        """Return the picture encoded by a method; of few pictures, the last ones, the features are kept."""
        key = (path, settings.method, settings.refine, settings.kp > 0)  # what the features depend on
        if key not in self._images:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"The picture has {image.width} x {image.height} pixels; at most 16 million work.")
            self._images[key] = self._predictors[settings.method].encode(path, LONGEST_SIDE)
            if len(self._images) > KEPT_IMAGES:
                self._images.popitem(last=False)
        self._images.move_to_end(key)
        return self._images[key]


def _check_result(result: Result | None) -> Result:
    if result is None:
        raise gr.Error(f"Segment the picture first: results are kept for {KEPT_SECONDS // 60} minutes.")
    return result


def area_changes(former: Result | None, result: Result) -> list[list[str]]:
    """Return what has changed since the former result of the same picture: rows of a word and its areas, in percent."""
    if former is None or former.path != result.path:
        return []
    rows = result.segmentation.area_changes(former.segmentation).items()
    return [[name, f"{100 * x:.1f}", f"{100 * y:.1f}", f"{100 * (y - x):+.1f}"] for name, (x, y) in rows]


def rankable_benchmarks() -> list[str]:
    """List the benchmarks whose words can be ranked on the page."""
    names = benchmark_names()
    return [name for name in names if sum(map(len, as_lists(words_to_rank(name)))) <= MAX_RANKED_WORDS]


def _build_refiner(cfg: CfgNode, name: str) -> Refiner | None:
    cfg = cfg.clone()
    cfg.TEST.ZERO_SHOT.REFINE = name
    return build_refiner(cfg)


def _has_refiner(cfg: CfgNode, name: str) -> bool:
    """Return whether a refiner can be built: DenseCRF needs a package that is optional."""
    try:
        _build_refiner(cfg, name)
    except RuntimeError:
        return False
    return True


def example_scenes(folder: Path) -> list[list]:
    """Draw scenes of the small world into a folder; return their paths, each with the words for what is in it."""
    rows, names = [], [*OBJECTS, *GROUNDS]
    for index in (18, 21, 16, 15):  # of 80 scenes, some that the model segments well
        scene = draw_scene(seed=7, index=index, size=96, objects=(4, 5))
        path = folder / f"scene_{index}.png"
        Image.fromarray(visualizer.enlarge(scene.image, 384)).save(path)  # the model sees it at its own size again
        rows.append([str(path), [names[value] for value in np.unique(scene.label)]])
    return rows


def build_page(page: Page, examples: list[list], method: str = TCL) -> gr.Blocks:
    """Lay out the page.

    Args:
        page: what it does.
        examples: each the path of a picture, and words.
        method: the method that it begins with.
    """
    with gr.Blocks(title="TCL: name it, see it", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as blocks:
        gr.Markdown(INTRODUCTION)
        last_result = gr.State(None, time_to_live=KEPT_SECONDS)

        with gr.Row():
            # The form
            with gr.Column(scale=2):
                picture = gr.Image(type="filepath", label="Picture", sources=["upload", "clipboard"], height=320)
                words = gr.Dropdown(
                    choices=[*OBJECTS, *GROUNDS],
                    value=[],
                    multiselect=True,
                    allow_custom_value=True,
                    label="Words",
                    info="Any words: Enter after each, or several with commas. person | man is one class, dog < animal "
                    "has a parent, and not: shadow takes pixels away",
                    elem_id="words",
                )
                specificity = gr.Slider(
                    0,
                    len(SPECIFICITIES) - 1,
                    SPECIFICITIES.index("synonyms"),
                    step=1,
                    label="From specific to general",
                    info="0: the first word alone. 1: its synonyms, behind |, too. 2: its parent, behind <",
                    elem_id="specificity",
                )
                background = gr.Checkbox(False, label="The rest is background")
                background_words = gr.Textbox("", label="Words of the background", elem_id="background")
                method = gr.Dropdown(page.methods, value=method, label="Method", elem_id="method")
                with gr.Accordion("Settings", open=False):
                    settings = page.settings(method.value)
                button = gr.Button("Segment", variant="primary", elem_id="segment")

            # The result
            with gr.Column(scale=3):
                result = gr.AnnotatedImage(label="Result", height=420, elem_id="result")
                areas = gr.Textbox(label="Share of the picture", interactive=False, elem_id="areas")
                changes = gr.Dataframe(
                    headers=["word", "before, %", "now, %", "change"],
                    label="Changes since the last result of this picture",
                    interactive=False,
                    visible=False,
                    elem_id="changes",
                )
                with gr.Row():
                    regions = gr.Image(
                        label="Click a region", interactive=False, height=320, buttons=[], elem_id="regions"
                    )
                    with gr.Column():
                        ranked_words = gr.Dropdown(
                            [TYPED_WORDS, *rankable_benchmarks()],
                            value=TYPED_WORDS,
                            allow_custom_value=True,
                            label="Words to compare there",
                            info="or type some, with commas",
                            elem_id="vocabulary",
                        )
                        ranking = gr.Label(num_top_classes=SHOWN_RANKED_WORDS, visible=False, elem_id="ranking")
                heat = gr.Image(visible=False, height=320, elem_id="heat", buttons=["download", "fullscreen"])

        gr.Examples(examples, [picture, words], label="Scenes of the small world")

        def run(former: Result | None, file: dict | None, *settings: object) -> dict:
            shown, kept, colors, text = page.segment(file and file["path"], *settings)
            rows = area_changes(former, kept)
            return {
                result: gr.AnnotatedImage(shown, color_map=colors),
                last_result: kept,
                areas: text,
                changes: gr.Dataframe(rows, visible=bool(rows)),
                regions: kept.segmentation.draw_classes(),
                ranking: gr.Label(None, visible=False),
                heat: gr.Image(None, visible=False),
            }

        def run_again(former: Result | None, *inputs: object) -> dict:
            return run(former, *inputs) if former else gr.skip()  # a result that is there is replaced

        # Connect form and result; without gradio's own look at the picture, whose error no visitor understands
        inputs = [last_result, picture, words, background, background_words, method, *settings, specificity]
        outputs = [result, last_result, areas, changes, regions, ranking, heat]
        button.click(run, inputs, outputs, preprocess=False)
        choice = method.change(page.settings, [method], list(settings))
        choice.success(run_again, inputs, outputs, preprocess=False)
        specificity.change(run_again, inputs, outputs, preprocess=False)
        result.select(page.heat_map, [last_result], [heat])
        regions.select(page.rank, [last_result, ranked_words], [regions, ranking])
    return blocks


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    add_model_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Serve the page until it is stopped.

    Args:
        args: of `argument_parser`.
    """
    with one_message():
        page = Page(read_model(args)())
        page.predictor(args.method)  # a method that cannot be built is said at once
    with TemporaryDirectory() as folder:
        blocks = build_page(page, example_scenes(Path(folder)), args.method)
        server = {"server_name": args.host, "server_port": args.port, "allowed_paths": [folder]}
        with one_message(OSError, OverflowError):  # a port that is taken, or that is none
            blocks.launch(**server, max_file_size="10mb", show_error=True)
