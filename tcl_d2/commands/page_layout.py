"""The layout of the web page: its fields, and what each of them sets off."""

from pathlib import Path
from typing import NamedTuple

import gradio as gr
from gradio.components import Component

from ..data.shapes import GROUNDS, OBJECTS
from ..utils.specificity import SPECIFICITIES
from .model_options import TCL
from .page import KEPT_SECONDS, SPECIFICITY, TYPED_WORDS, Page, Result, area_changes, rankable_benchmarks

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
        fields: in the order in which Page.segment takes their values.
        method: the one of them with the method.
        settings: those of them that depend on the method, see Page.settings.
        specificity: the one of them with the specificity of words.
        button: starts.
    """

    fields: list[Component]
    method: gr.Dropdown
    settings: list[Component]
    specificity: gr.Slider
    button: gr.Button


class Answer(NamedTuple):
    """The fields in which the page answers.

    Attributes:
        last_result: what is kept of a visitor's last result.
        masks: the picture with the masks of the words.
        areas: their areas, as text.
        changes: how these have changed.
        regions: the picture in which regions are clicked.
        ranked_words: words to rank for a region.
        ranking: of these words.
        heat_map: the scores of a word.
    """

    last_result: gr.State
    masks: gr.AnnotatedImage
    areas: gr.Textbox
    changes: gr.Dataframe
    regions: gr.Image
    ranked_words: gr.Dropdown
    ranking: gr.Label
    heat_map: gr.Image


def build_page(page: Page, examples: list[list], method: str = TCL) -> gr.Blocks:
    """Lay out the page.

    Args:
        page: what it does.
        examples: each the path of a picture, and words.
        method: the method that it begins with.
    """
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
    """Say what is done where a field is changed or clicked."""

    def run(former: Result | None, file: dict | None, *settings: object) -> dict:
        path = file and file["path"]
        if path and not Path(path).resolve().is_relative_to(Path(form.fields[0].GRADIO_CACHE).resolve()):
            raise gr.Error("The picture is no file that was uploaded here.")  # but any file of this machine
        shown, kept, colors, text = page.segment(path, *settings)
        rows = area_changes(former, kept)
        return {
            answer.last_result: kept,
            answer.masks: gr.AnnotatedImage(shown, color_map=colors),
            answer.areas: text,
            answer.changes: gr.Dataframe(rows, visible=bool(rows)),
            answer.regions: kept.segmentation.draw_classes(),
            answer.ranking: gr.Label(None, visible=False),
            answer.heat_map: gr.Image(None, visible=False),
        }

    def run_again(former: Result | None, *inputs: object) -> dict:
        return run(former, *inputs) if former else gr.skip()  # a result that is there is replaced

    # Segment; without gradio's own look at the picture, whose error no visitor understands
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
