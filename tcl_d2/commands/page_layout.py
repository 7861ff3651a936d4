"""The layout of the web page: its fields, and the events that connect them."""

from pathlib import Path
from typing import NamedTuple

import gradio as gr
from gradio.components import Component

from ..data.shapes import GROUNDS, OBJECTS
from ..words.specificity import SPECIFICITIES
from .model_options import TCL
from .page import KEPT_SECONDS, SPECIFICITY, TYPED_WORDS, Page, Result, area_changes, draw_masks, rankable_benchmarks

SHOWN_RANKED_WORDS = 8
TITLE = "TCL: name it, see it"
INTRODUCTION = f"""# {TITLE}
Give a picture and the words to look for. Point at a word of the result to see its mask alone; click it for its scores.
Click a region to see which words fit it best.
Compare the trained model with methods that use its CLIP without training.
The model that comes with the project only knows a small world of textures: for photos, start the page
with your weights.
"""


class Form(NamedTuple):
    """The fields in which a visitor asks.

    Attributes:
        fields: all of them, in the order in which Page.segment takes their values.
        settings: those that depend on the method, see Page.settings.
    """

    fields: list[Component]
    method: gr.Dropdown
    settings: list[Component]
    specificity: gr.Slider
    button: gr.Button


class Answer(NamedTuple):
    """The fields in which the page answers; in `regions`, the visitor clicks for a ranking of `ranked_words`."""

    last_result: gr.State
    masks: gr.AnnotatedImage
    areas: gr.Textbox
    changes: gr.Dataframe
    regions: gr.Image
    ranked_words: gr.Dropdown
    ranking: gr.Label
    heat_map: gr.Image


def build_page(page: Page, examples: list[list], method: str = TCL) -> gr.Blocks:
    """Lay out the page, with examples of a picture's path and words, and the method that it begins with."""
    with gr.Blocks(title=TITLE, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2):
                form = _lay_out_form(page, method)
            with gr.Column(scale=3):
                answer = _lay_out_answer()
        gr.Examples(examples, form.fields[:2], label="Scenes of the small world")

        _connect(page, form, answer)
    return blocks


def _lay_out_form(page: Page, method: str) -> Form:
    # Picture and words
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
    specificity = SPECIFICITY.slider(
        SPECIFICITIES.index("synonyms"),
        info="0: the first word alone. 1: its synonyms, behind |, too. 2: its parent, behind <",
        elem_id="specificity",
    )
    background = gr.Checkbox(False, label="The rest is background")
    background_words = gr.Textbox("", label="Words of the background", elem_id="background")

    # Method and its settings
    methods = gr.Dropdown(page.methods, value=method, label="Method", elem_id="method")
    with gr.Accordion("Settings", open=False):
        settings = list(page.settings(method))
    button = gr.Button("Segment", variant="primary", elem_id="segment")

    fields = [picture, words, background, background_words, methods, *settings, specificity]
    return Form(fields, methods, settings, specificity, button)


def _lay_out_answer() -> Answer:
    # Masks and areas
    last_result = gr.State(None, time_to_live=KEPT_SECONDS)
    masks = gr.AnnotatedImage(label="Result", height=420, elem_id="result")
    areas = gr.Textbox(label="Share of the picture", interactive=False, elem_id="areas")
    changes = gr.Dataframe(
        headers=["word", "before, %", "now, %", "change"],
        label="Changes since the last result of this picture",
        interactive=False,
        visible=False,
        elem_id="changes",
    )

    # Regions, and the words that fit them
    with gr.Row():
        regions = gr.Image(label="Click a region", interactive=False, height=320, buttons=[], elem_id="regions")
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

    heat_map = gr.Image(visible=False, height=320, elem_id="heat", buttons=["download", "fullscreen"])
    return Answer(last_result, masks, areas, changes, regions, ranked_words, ranking, heat_map)


def _connect(page: Page, form: Form, answer: Answer) -> None:
    def run(former: Result | None, file: dict | None, *settings: object) -> dict:
        path = file and file["path"]
        if path and not Path(path).resolve().is_relative_to(Path(form.fields[0].GRADIO_CACHE).resolve()):
            raise gr.Error("The picture is no file that was uploaded here.")  # but any file of this machine

        result = page.segment(path, *settings)
        masks, colors = draw_masks(result.segmentation)
        areas = [f"{name} {100 * area:.0f} %" for name, area in result.segmentation.areas().items() if area > 0]
        changes = area_changes(former, result)
        return {
            answer.last_result: result,
            answer.masks: gr.AnnotatedImage(masks, color_map=colors),
            answer.areas: ", ".join(areas),
            answer.changes: gr.Dataframe(changes, visible=bool(changes)),
            answer.regions: result.segmentation.draw_classes(),
            answer.ranking: gr.Label(None, visible=False),
            answer.heat_map: gr.Image(None, visible=False),
        }

    def run_again(former: Result | None, *inputs: object) -> dict:
        return run(former, *inputs) if former else gr.skip()

    # Segment; without gradio's own check of the picture, whose error no visitor understands
    inputs = [answer.last_result, *form.fields]
    outputs = [field for field in answer if field is not answer.ranked_words]
    form.button.click(run, inputs, outputs, preprocess=False)
    choice = form.method.change(page.settings, [form.method], form.settings)
    choice.success(run_again, inputs, outputs, preprocess=False)
    form.specificity.change(run_again, inputs, outputs, preprocess=False)

    # Ask about the result
    answer.masks.select(page.heat_map, [answer.last_result], [answer.heat_map])
    asked = [answer.last_result, answer.ranked_words]
    answer.regions.select(page.rank, asked, [answer.regions, answer.ranking])
