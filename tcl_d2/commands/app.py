"""Serve a web page: a picture and words in, masks out.

tcl-d2 app                      # the small world's model, http://127.0.0.1:7860
tcl-d2 app --model official     # the official tcl.pth
tcl-d2 app --method sclip       # begin with its CLIP alone; the page has all methods to choose from
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from ..data.shapes import GROUNDS, OBJECTS, draw_scene
from ..data.words import as_lists, split_background_words
from ..modeling import FrozenCLIP
from ..modeling.refiner import Refiner, build_refiner, refiner_names
from ..predictor import TCLPredictor, split_words
from ..segmentation import Segmentation
from ..utils import visualizer
from ..utils.errors import one_message
from .model_options import TCL, add_model_options, method_names, read_model, with_method

try:
    import gradio as gr
except ImportError:
    sys.exit("error: the page needs gradio: pip install 'gradio>=6'")

MAX_PIXELS = 16_000_000
MAX_WORDS = 50
LONGEST_SIDE = 1024  # pixels of the result that is shown
KEPT_SECONDS = 1800  # time that the results and files of an idle visitor are kept
INTRODUCTION = """# TCL: name it, see it
Give a picture and the words to look for. Point at a word of the result to see its mask alone; click it for its scores.
Compare the trained model with methods that use its CLIP without training.
The model that comes with the project only knows a small world of textures: for photos, start the page
with your weights.
"""


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
    ) -> tuple[tuple[np.ndarray, list], Segmentation, dict, str]:
        """Look for the words in the picture.

        Args:
            path: of the picture.
            words: class words; each may be a text of several classes, see split_words.
            background: whether pixels that no word fits well are background.
            background_words: words of the background, which there is then in any case; see split_background_words.
            method: one of method_names.
            threshold: score of the background.
            kp: share of CLIP's own masks, where the method has them.
            refine: one of `refiners`.

        Returns:
            - the image and a mask of each class in it, as gr.AnnotatedImage takes them;
            - the segmentation at the size that is shown, to be kept for heat maps, its scores uint8;
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
        background_words = split_background_words(background_words)
        num_words = sum(map(len, as_lists(words))) + len(background_words)
        if num_words > MAX_WORDS:
            raise gr.Error(f"At most {MAX_WORDS} words at once, not {num_words}.")

        # Segment with the visitor's settings
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"The picture has {image.width} x {image.height} pixels; at most 16 million work.")
            predictor = self.predictor(method)
            with self._lock:
                model = predictor.model
                model.background_score, model.refiner = threshold, _build_refiner(predictor.cfg, refine)
                if hasattr(model, "kp_weight"):
                    model.kp_weight = kp
                segmentation = predictor(path, words, background_words or background, longest_side=LONGEST_SIDE)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise gr.Error(str(error).replace(path, "the file")) from None
        segmentation.scores = segmentation.scores.mul_(255).round_().byte()  # a quarter of the memory

        # Make what the page shows
        image, labels = visualizer.enlarge(segmentation.image), visualizer.enlarge(segmentation.labels)
        visible = [index for index in np.unique(labels) if not (segmentation.background and index == 0)]
        masks = [(labels == index, segmentation.classes[index]) for index in visible]
        class_colors = segmentation.colors()
        colors = {segmentation.classes[index]: "#{:02x}{:02x}{:02x}".format(*class_colors[index]) for index in visible}
        areas = ", ".join(f"{name} {100 * area:.0f} %" for name, area in segmentation.areas().items() if area > 0)
        return (image, masks), segmentation, colors, areas

    def heat_map(self, segmentation: Segmentation | None, event: gr.SelectData) -> gr.Image:
        """Draw the heat map of the word that was clicked."""
        if segmentation is None:
            raise gr.Error(f"Segment the picture first: results are kept for {KEPT_SECONDS // 60} minutes.")
        picture = visualizer.enlarge(segmentation.draw_heat_map(event.value))
        return gr.Image(picture, label=f"Score of '{event.value}': blue 0, red 1", visible=True)


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
        segmentation = gr.State(None, time_to_live=KEPT_SECONDS)

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
                    info="Any words: Enter after each, or several with commas; person | man is one class",
                    elem_id="words",
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
                heat = gr.Image(visible=False, height=320, elem_id="heat", buttons=["download", "fullscreen"])

        gr.Examples(examples, [picture, words], label="Scenes of the small world")

        def run(file: dict | None, *settings: object) -> tuple:
            shown, kept, colors, text = page.segment(file and file["path"], *settings)
            return gr.AnnotatedImage(shown, color_map=colors), kept, text, gr.Image(None, visible=False)

        def run_again(areas_shown: str, *inputs: object) -> tuple:
            return run(*inputs) if areas_shown else gr.skip()  # another method replaces a result that is there

        # Connect form and result; without gradio's own look at the picture, whose error no visitor understands
        inputs = [picture, words, background, background_words, method, *settings]
        outputs = [result, segmentation, areas, heat]
        button.click(run, inputs, outputs, preprocess=False)
        choice = method.change(page.settings, [method], list(settings))
        choice.success(run_again, [areas, *inputs], outputs, preprocess=False)
        result.select(page.heat_map, [segmentation], [heat])
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
