"""The web page: what it does for a visitor, and all of it in a real browser without a screen, where there is one."""

import functools
import os
import re
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError, Thread, current_thread
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.data.shapes import draw_scene
from tcl_d2.modeling import REFINER_REGISTRY
from tcl_d2.modeling.refiners import dense_crf
from tcl_d2.predictor import TCLPredictor
from tcl_d2.segmentation import Segmentation
from tests import running
from tests.conftest import ROOT
from tests.golden import groupvit

gr = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")
from tcl_d2.commands.page import (  # noqa: E402  (it needs gradio)
    KEPT_IMAGES,
    TYPED_WORDS,
    Page,
    area_changes,
    draw_masks,
    feature_bytes,
    rankable_benchmarks,
)
from tcl_d2.commands.page_layout import build_page  # noqa: E402

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    webdriver = None
in_browser = pytest.mark.skipif(
    webdriver is None or not shutil.which("chromedriver"),
    reason="needs Chromium and its driver: Debian's packages chromium and chromium-driver",
)
SERVER = """
import os, runpy, sys
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
sys.argv = ["demo/app.py", "--port", "{}"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SETTINGS = {"background": True, "background_words": "", "method": "tcl", "threshold": 0.4, "kp": 0.3, "refine": "pamr"}


@pytest.fixture(scope="module")
def page():
    return Page(TCLPredictor(ROOT / "configs/shapes/trained.yaml"))


@pytest.mark.fault("web page: two visitors with 16 megapixels and 50 words", "150 MB are kept for both together")
def test_little_is_kept_for_a_visitor(page, tmp_path):
    Image.new("RGB", (4000, 4000), "green").save(tmp_path / "photo.jpg")
    words, kept = [f"thing {i}" for i in range(50)], 0
    for _ in range(2):
        segmentation = page.segment(str(tmp_path / "photo.jpg"), words, **SETTINGS).segmentation
        (image, masks), _ = draw_masks(segmentation)
        assert image.shape == (1024, 1024, 3) and len(segmentation.classes) == 51
        assert all(mask.shape == image.shape[:2] for mask, _ in masks)
        kept += segmentation.image.nbytes + segmentation.labels.nbytes + segmentation.scores.nbytes
        for features, _ in page._images[next(reversed(page._images))].inputs["kept_crops"]:
            kept += sum(value.nbytes for value in features if isinstance(value, torch.Tensor))
    assert kept < 150e6


def test_heat_maps_are_drawn_of_what_is_kept(page, tmp_path):
    Image.fromarray(draw_scene(seed=7, index=2, size=96, objects=(3, 4)).image).save(tmp_path / "scene.png")
    result = page.segment(str(tmp_path / "scene.png"), ["brick, grass"], **SETTINGS)
    _, colors = draw_masks(result.segmentation)
    assert result.segmentation.scores.dtype.itemsize == 1 and set(colors) <= {"brick", "grass"}
    heat_map = page.heat_map(result, gr.SelectData(None, {"index": 0, "value": "grass"}))
    assert np.ndim(heat_map.constructor_args["value"]) == 3
    with pytest.raises(gr.Error, match="picture first"):
        page.heat_map(None, gr.SelectData(None, {"index": 0, "value": "grass"}))


@pytest.mark.fault("web page: a picture that is too large, broken or empty", "the page says what is wrong")
def test_pictures_that_cannot_be_used_are_named(page, tmp_path):
    Image.new("L", (5000, 4000)).save(tmp_path / "large.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    Image.fromarray(draw_scene(seed=7, index=2).image).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    (tmp_path / "empty.png").touch()
    reasons = {"large": "5000 x 4000", "bomb": "exceeds limit", "broken": "unreadable", "empty": "cannot identify"}
    for name, reason in reasons.items():
        with pytest.raises(gr.Error, match=reason):
            page.segment(str(tmp_path / f"{name}.png"), ["brick"], **SETTINGS)


def test_words_that_cannot_be_used_are_named(page, tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    many = ", ".join(map(str, range(51)))
    reasons = {" , ": "at least one word", many: "At most 50 words", "background": "leave the word out"}
    reasons |= {many.replace(",", "|"): "At most 50 words at once, not 51"}  # of one class
    reasons |= {"brick, not: brick": "is asked for too", "brick, not:": "no negative word"}
    reasons |= {"not: brick": "at least one", "brick <": "a class and its parent"}
    for text, reason in reasons.items():
        with pytest.raises(gr.Error, match=reason):
            page.segment(str(tmp_path / "small.png"), [text], **SETTINGS)


@pytest.mark.fault("web page's API: numbers that are none, NaN or out of their range", "refused by the field's name")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5, 2.5, 2**70, "0.5", None, True, [0.5], {}])
@pytest.mark.parametrize(
    "field, label",
    [("threshold", "Score of the background"), ("kp", "Share of CLIP's own"), ("specificity", "From specific")],
)
def test_numbers_that_no_field_has_are_refused(page, tmp_path, field, label, value):
    """A program can send what the page's sliders cannot, and NaN compares as no number does."""
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    with pytest.raises(gr.Error, match=label):
        page.segment(str(tmp_path / "small.png"), ["brick"], **{**SETTINGS, field: value})


@pytest.mark.fault("web page's API: values of a wrong type, a text in place of a list", "refused by the field's name")
@pytest.mark.parametrize(
    "field, label, values",
    [
        ("words", "Words", ("brick", [None], [1], [["brick", "grass"]], {"brick": 1}, 5, True)),
        ("background", "The rest is background", (None, "yes", "", 1, [])),
        ("background_words", "Words of the background", (None, 1, ["sky"], True)),
        ("method", "Method", (None, 1, ["tcl"], {}, "nothing", "x" * 5000)),
        ("refine", "Refine", (None, 1, ["pamr"], {}, "nothing")),
    ],
)
def test_values_of_a_wrong_type_are_refused(page, tmp_path, field, label, values):
    """The text "brick" as a list of words would be five classes."""
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    for value in values:
        with pytest.raises(gr.Error, match=label) as refused:
            page.segment(str(tmp_path / "small.png"), **{"words": ["brick"], **SETTINGS, field: value})
        assert len(str(refused.value)) < 300
    with pytest.raises(gr.Error, match="Method"):
        page.settings([])


@pytest.mark.fault("web page: an error inside the model", "one sentence, the rest in the log")
def test_other_errors_are_said_in_a_sentence(page, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    monkeypatch.setattr(TCLPredictor, "__call__", fail)
    with pytest.raises(gr.Error) as said:
        page.segment(str(tmp_path / "small.png"), ["brick"], **SETTINGS)
    assert "log" in str(said.value) and "mat1" not in str(said.value)


@pytest.mark.parametrize("path", [None, ""])
def test_no_picture_is_said(page, path):
    """An empty path too, which would be found between all letters of a message."""
    with pytest.raises(gr.Error, match="picture first"):
        page.segment(path, ["brick"], **SETTINGS)


@pytest.mark.fault("web page: a word of 100,000 letters", "refused at once")
def test_long_words_are_refused(page, tmp_path):
    """Such words take a tokenizer seconds each, while all visitors wait, and end behind CLIP's context anyway."""
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    for words, background_words in ((["ab" * 50_000], ""), (["brick"], "ab" * 50_000), (["a < b" + "c" * 9999], "")):
        with pytest.raises(gr.Error, match="characters") as refused:
            page.segment(str(tmp_path / "small.png"), words, **{**SETTINGS, "background_words": background_words})
        assert len(str(refused.value)) < 300


@pytest.mark.fault("web page: words that the small world's model does not know", "the page says so")
def test_words_that_the_model_does_not_know_are_said(page, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(gr, "Warning", shown.append)
    Image.fromarray(draw_scene(seed=7, index=2, size=96).image).save(tmp_path / "scene.png")
    result = page.segment(str(tmp_path / "scene.png"), ["brick", "not: wood"], **SETTINGS)
    assert not shown
    page.segment(str(tmp_path / "scene.png"), ["cat | brick", "lava"], **SETTINGS)
    page.rank(result, "dog, lava", gr.SelectData(None, {"index": (5, 5), "value": None}))
    assert [re.search(r"not trained on '(\w+)', so", text)[1] for text in shown] == ["cat", "dog"]


def test_methods_are_built_once_and_share_the_clip(page):
    first, dense = page.predictor("tcl"), page.predictor("sclip")
    assert dense is page.predictor("sclip") and dense.model.clip is first.model.clip
    assert page.methods[0] == ("TCL", "tcl") and ("sclip", "sclip") in page.methods and len(page.methods) >= 7


def test_a_model_without_a_clip_is_the_only_method():
    """The other methods change the last block of a CLIP; which refiners there are depends on what is installed."""
    predictor = SimpleNamespace(model=groupvit.build_model(), cfg=load_config(ROOT / "configs/groupvit/yfcc.yaml"))
    page = Page(predictor)
    assert page.methods == [("GroupViT", "tcl")]
    threshold, kp, refine = page.settings("tcl")
    assert (threshold.value, kp.visible, refine.value) == (0.95, False, "none")


LPOSS = ("lposs", "lposs_pixels", "lposs_plus")


def test_refiners_that_can_be_built_are_offered(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    assert set(Page(page.predictor("tcl")).refiners) == {"none", "pamr", *LPOSS}
    monkeypatch.setattr(dense_crf, "_import_pydensecrf", lambda: None)
    assert set(Page(page.predictor("tcl")).refiners) == {"none", "pamr", "densecrf", *LPOSS}


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError])
def test_a_refiner_of_ones_own_that_needs_settings_is_not_offered(page, monkeypatch, error):
    def needs_a_folder(cfg):
        raise error("give a folder")

    monkeypatch.setitem(REFINER_REGISTRY._obj_map, "needs_a_folder", needs_a_folder)
    assert "needs_a_folder" not in Page(page.predictor("tcl")).refiners


def test_form_has_the_settings_of_the_method(page):
    """Those of its configuration, also after a visitor has used others."""
    for method, values in {"tcl": (0.4, 0.3, "pamr"), "sclip": (0.3, 0.3, "none")}.items():
        model = page.predictor(method).model
        model.background_score, model.refiner = 0.9, None
        threshold, kp, refine = page.settings(method)
        assert (threshold.value, kp.value, refine.value) == values and kp.visible == (method == "tcl")


def test_background_of_words(page, tmp_path):
    """They make a background without the box too, and are not words of the picture."""
    image = draw_scene(seed=7, index=5, size=96).image
    Image.fromarray(image).save(tmp_path / "scene.png")
    settings = {**SETTINGS, "background": False, "background_words": "soil, sand"}
    segmentation = page.segment(str(tmp_path / "scene.png"), ["wood | marble, lava"], **settings).segmentation
    _, colors = draw_masks(segmentation)
    expected = page.predictor("tcl")(image, [["wood", "marble"], "lava"], ["soil", "sand"])
    assert segmentation.classes == ["background", "wood", "lava"] and set(colors) <= {"wood", "lava"}
    assert np.array_equal(segmentation.labels, expected.labels)
    with pytest.raises(gr.Error, match="50 words.* 51"):
        many = {**settings, "background_words": ",".join(f"thing {number}" for number in range(49))}
        page.segment(str(tmp_path / "scene.png"), ["wood, lava"], **many)


@pytest.mark.fault("web page: visitors with other methods and settings at once", "each gets the results of theirs")
def test_visitors_at_once_do_not_mix(page, tmp_path):
    Image.fromarray(draw_scene(seed=7, index=5, size=96).image).save(tmp_path / "scene.png")
    visits = [
        {**SETTINGS, "method": method, "threshold": threshold, "refine": refine}
        for method in ("tcl", "sclip", "naclip")
        for threshold, refine in ((0.15, "pamr"), (0.3, "none"))
    ]

    def visit(settings: dict) -> np.ndarray:
        words = ["wood, lava, brick, denim, grass"]
        return page.segment(str(tmp_path / "scene.png"), words, **settings).segmentation.scores.numpy()

    alone = [visit(settings) for settings in visits]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(visit, visits * 4))
    assert all(np.array_equal(scores, alone[index % 6]) for index, scores in enumerate(together))
    assert len({scores.tobytes() for scores in alone}) == 6


def test_all_requests_are_computed_in_one_thread(page, tmp_path, monkeypatch):
    """Each thread that has run the model keeps memory that it has freed: with gradio's, a served page grew."""
    threads, segment = [], TCLPredictor.__call__

    def watched(predictor: TCLPredictor, *inputs: object) -> Segmentation:
        threads.append(current_thread())
        return segment(predictor, *inputs)

    monkeypatch.setattr(TCLPredictor, "__call__", watched)
    Image.fromarray(draw_scene(seed=7, index=2, size=48).image).save(tmp_path / "scene.png")
    visitors = [
        Thread(target=page.segment, args=(str(tmp_path / "scene.png"), ["wood"]), kwargs=SETTINGS) for _ in "ab"
    ]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert len(threads) == 2 and len(set(threads)) == 1
    assert not set(visitors) & set(threads)
    assert threads[0].daemon  # a request that is computed for long does not hold up a server that is stopped


def test_a_method_that_two_visitors_choose_at_once_is_built_once(page, tmp_path, monkeypatch):
    """Else the picture that the one has encoded is not of the other's model."""
    built, meet = [], Barrier(2)

    def build(predictor: TCLPredictor, method: str) -> TCLPredictor:
        built.append(method)
        with suppress(BrokenBarrierError):
            meet.wait(1)  # until both build, or a while
        return predictor.with_dense_head(method)

    Image.fromarray(draw_scene(seed=7, index=5, size=48).image).save(tmp_path / "scene.png")
    monkeypatch.setattr("tcl_d2.commands.page.with_method", build)
    shared = Page(page.predictor("tcl"))
    with ThreadPoolExecutor(2) as pool:
        predictors = list(pool.map(shared.predictor, ["clip", "clip"]))
    assert built == ["clip"] and predictors[0] is predictors[1]


@pytest.mark.fault("web page: ProxyCLIP without its vision model's weights", "the page says what is missing")
def test_a_method_that_cannot_be_built_is_said(page, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    Image.fromarray(draw_scene(seed=7, index=2, size=48).image).save(tmp_path / "scene.png")
    for ask in (
        lambda: page.settings("proxyclip"),
        lambda: page.segment(str(tmp_path / "scene.png"), ["brick"], **{**SETTINGS, "method": "proxyclip"}),
    ):
        with pytest.raises(gr.Error, match="MODEL.DENSE_CLIP.PROXY"):
            ask()


@pytest.mark.fault("web page: pictures of 4000 x 3 and 2 x 3000 pixels", "segmented and shown as any other")
@pytest.mark.parametrize("size", [(4000, 3), (2, 3000)])
def test_extreme_pictures_are_shown(page, tmp_path, size):
    Image.new("RGB", size, "green").save(tmp_path / "thin.png")
    segmentation = page.segment(str(tmp_path / "thin.png"), ["brick", "grass"], **SETTINGS).segmentation
    (image, _), _ = draw_masks(segmentation)
    assert max(image.shape) == 1024 and segmentation.labels.shape == segmentation.image.shape[:2]


@pytest.fixture
def striped(page, tmp_path):
    """A picture of the small world, and the results of its words at each specificity, the last with a negative word."""
    image = draw_scene(seed=7, index=18, size=96, objects=(4, 5)).image
    Image.fromarray(image.repeat(4, 0).repeat(4, 1)).save(tmp_path / "scene.png")
    words = ["marble, yellow striped | red striped < striped", "purple striped < striped"]
    path, settings = str(tmp_path / "scene.png"), {**SETTINGS, "background": False}
    results = [page.segment(path, words, **settings, specificity=level) for level in range(3)]
    return [*results, page.segment(path, [*words, "not: grass"], **settings, specificity=2)]


def test_negative_words_and_specificity_change_the_areas(page, striped):
    """From the same features of the picture; of what negative words take, the areas alone tell."""
    results = striped
    assert [result.segmentation.classes for result in results] == [
        ["marble", "yellow striped", "purple striped"],
        ["marble", "yellow striped", "purple striped"],
        ["marble", "striped"],
        ["marble", "striped", "not: grass"],
    ]
    result = striped[3]
    (_, masks), colors = draw_masks(result.segmentation)
    assert {name for _, name in masks} == colors.keys() == {"marble", "striped"}
    assert 0.8 < result.segmentation.areas()["not: grass"] < 0.9

    rows = {word: change for word, *change in area_changes(results[2], results[3])}
    before, now = (results[index].segmentation.areas() for index in (2, 3))
    assert rows["not: grass"] == ["0.0", f"{100 * now['not: grass']:.1f}", f"+{100 * now['not: grass']:.1f}"]
    assert rows["striped"][2] == f"{100 * (now['striped'] - before['striped']):+.1f}" < "0"
    assert not np.array_equal(results[0].segmentation.labels, results[1].segmentation.labels)
    assert area_changes(None, result) == area_changes(result._replace(path="other"), result) == []


def click(*index: object) -> gr.SelectData:
    return gr.SelectData(None, {"index": list(index), "value": None})


def test_regions_are_ranked_where_they_are_clicked(page, striped):
    """By typed words, those of the result, or those of a benchmark; on what no word took, of the single point."""
    result = striped[3]
    factor = result.segmentation.draw_classes().shape[0] // 384
    y, x = np.argwhere(result.segmentation.mask("marble"))[20]
    picture, label = page.rank(result, TYPED_WORDS, click(factor * x, factor * y))
    ranking = label.constructor_args["value"]
    assert "this region of 'marble'" in label.label and next(iter(ranking)) == "marble" and "not: grass" in ranking
    assert (picture[factor * y, factor * x] > picture[-1, -1]).all()

    for words, count in {"shapes_objects_val": 23, "lava, grass": 2}.items():
        assert len(page.rank(result, words, click(0, 0))[1].constructor_args["value"]) == count
    assert "the point (0, 0)" in page.rank(result, "lava", click(1, 1))[1].label


@pytest.mark.fault("web page: a click too early or outside, no words or an unknown benchmark", "the page says so")
def test_clicks_that_cannot_be_answered_are_named(page, striped):
    result = striped[3]
    for kept, words, point, reason in (
        (None, "lava", (0, 0), "Segment the picture first"),
        (result, "lava", (5000, 0), "point is .2500, 0.*image of 384 x 384 pixels"),
        (result, "lava", (0, -3), "point is .0, -2"),
        (result, " , ", (0, 0), "1 to 200 words to compare"),
        (result, None, (0, 0), "1 to 200 words to compare"),
        (result, "zeroshot_moon_val", (0, 0), "there is no benchmark 'zeroshot_moon_val'"),
        (result, "zeroshot_lvis_val", (0, 0), "1 to 200 words .* not 1"),
        (result, "lava, not: lava", (0, 0), "asked for too"),
    ):
        with pytest.raises(gr.Error, match=reason):
            page.rank(kept, words, click(*point))
    for index in (None, 5, [], [1, 2, 3], ["a", "b"], [None, 1], "55", {}, [float("nan"), 1], [1e300, 1], [True, 1]):
        with pytest.raises(gr.Error, match="Place of the click"):
            page.rank(result, "lava", gr.SelectData(None, {"index": index, "value": None}))
    for words in (5, ["lava"], {"lava": 1}, True):
        with pytest.raises(gr.Error, match="Words to compare there"):
            page.rank(result, words, click(0, 0))
    for word in (None, 5, [], "not there"):
        with pytest.raises(gr.Error, match="The word"):
            page.heat_map(result, gr.SelectData(None, {"index": 0, "value": word}))
    for ask in (functools.partial(page.rank, result, "lava"), functools.partial(page.heat_map, result)):
        with pytest.raises(gr.Error, match="was given"):
            ask(gr.EventData(None, None))  # of a program that clicks nothing
    assert "zeroshot_ade20k_val" in rankable_benchmarks() and "zeroshot_lvis_val" not in rankable_benchmarks()


def test_pictures_are_encoded_once_and_few_are_kept(page, tmp_path, monkeypatch):
    """For clicks, words and thresholds; not for what the features depend on."""
    model, num_encoded = page.predictor("tcl").model, []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda crops: num_encoded.append(len(crops)) or encode(crops))
    for index in range(6):
        Image.fromarray(draw_scene(seed=7, index=index, size=48).image).save(tmp_path / f"{index}.png")

    path = str(tmp_path / "0.png")
    for changes in ({}, {"threshold": 0.1}, {"kp": 0.8}, {"background": False}):
        result = page.segment(path, ["brick"], **{**SETTINGS, **changes})
        page.rank(result, "shapes_objects_val", click(0, 0))
    assert len(num_encoded) == 1
    for changes in ({"kp": 0}, {"refine": "none"}, {"method": "clip"}):
        page.segment(path, ["brick"], **{**SETTINGS, **changes})
    assert len(num_encoded) == 3

    for index in range(6):
        page.segment(str(tmp_path / f"{index}.png"), ["brick"], **SETTINGS)
    assert len(page._images) == KEPT_IMAGES


@pytest.mark.fault("web page: pictures whose features take much memory", "the last ones that fit are kept")
def test_features_are_kept_up_to_a_size(page, tmp_path, monkeypatch):
    def num_kept(index: int, width: int) -> int:
        path = tmp_path / f"{index}.png"
        Image.fromarray(draw_scene(seed=7, index=index, size=48).image).resize((width, 48)).save(path)
        page.segment(str(path), ["brick"], **SETTINGS)
        return len(page._images)

    page._images.clear()
    num_kept(0, 480)
    (image,) = page._images.values()
    monkeypatch.setattr("tcl_d2.commands.page.KEPT_BYTES", 3 * feature_bytes(image))
    assert [num_kept(index, 480) for index in range(5)] == [1, 2, 3, 3, 3]
    assert num_kept(5, 48) == 0 and num_kept(6, 480) == 1  # a square has more windows


def test_requests_that_fail_keep_no_more(page, tmp_path, monkeypatch):
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    monkeypatch.setattr("tcl_d2.commands.page.KEPT_IMAGES", 0)
    with pytest.raises(gr.Error, match="brick.*negative"):
        page.segment(str(tmp_path / "small.png"), ["brick, not: brick"], **SETTINGS)
    assert not page._images


def test_page_answers(page, tmp_path, monkeypatch):
    """Through its server, as a browser asks it; a file that is no image is said in the page's own words."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    Image.fromarray(draw_scene(seed=7, index=2, size=96).image).save(tmp_path / "scene.png")
    (tmp_path / "text.png").write_text("no image")
    blocks = build_page(page, [])
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, show_error=True)
    try:
        client = gradio_client.Client(address, verbose=False)
        ask = functools.partial(client.predict, api_name="/run")
        result, areas, *_ = ask(gradio_client.handle_file(tmp_path / "scene.png"), ["brick, grass"], *SETTINGS.values())
        assert "%" in areas and {part["label"] for part in result["value"]["annotations"]} <= {"brick", "grass"}
        with pytest.raises(gradio_client.exceptions.AppError, match="^cannot identify image file 'the file'$"):
            ask(gradio_client.handle_file(tmp_path / "text.png"), ["brick"], *SETTINGS.values())
        for path, reason in ((str(tmp_path / "scene.png"), "uploaded here"), ("", "Give a picture first")):
            with pytest.raises(gradio_client.exceptions.AppError, match=reason):  # a file of this machine
                ask({"path": path}, ["brick"], *SETTINGS.values())
    finally:
        blocks.close()


def test_what_is_kept_goes_after_a_while(page):
    """Results in memory, and gradio's files of uploads and results."""
    blocks = build_page(page, [])
    (state,) = (block for block in blocks.blocks.values() if isinstance(block, gr.State))
    assert 0 < state.time_to_live <= 3600 and blocks.delete_cache and max(blocks.delete_cache) <= 3600


@pytest.fixture(scope="module")
def address(world):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running.started(world, "-c", SERVER.format(port)) as script:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert script.poll() is None and time.monotonic() < deadline, "the page did not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, address):
    """A browser with the page as a visitor first sees it."""
    driver.get("about:blank")
    driver.get(address)
    WebDriverWait(driver, 60).until(lambda d: d.find_elements(By.ID, "segment"))
    return driver


def wait_for(driver, look, seconds: float = 60):
    return WebDriverWait(driver, seconds, ignored_exceptions=(Exception,)).until(look)


def type_words(driver, *words: str) -> None:
    """Type words into the form, with Enter after each."""
    field = driver.find_element(By.CSS_SELECTOR, "#words input")
    for word in words:
        field.send_keys(word, Keys.ENTER)
    field.send_keys(Keys.ESCAPE)


def areas(driver) -> str:
    return driver.find_element(By.CSS_SELECTOR, "#areas textarea").get_attribute("value")


def show_heat_map(driver) -> None:
    """Click the first word of the result."""
    wait_for(driver, lambda d: d.find_element(By.CSS_SELECTOR, "#result .legend-item")).click()
    wait_for(driver, lambda d: d.find_element(By.CSS_SELECTOR, "#heat img").is_displayed())


@in_browser
def test_picture_and_words_in_masks_out(browser, tmp_path):
    """Upload, type words, run: the shares of the picture are shown; a click on a word shows its scores."""
    Image.fromarray(draw_scene(seed=7, index=2, size=96, objects=(3, 4)).image).save(tmp_path / "scene.png")
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "scene.png"))
    wait_for(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "img[src*='scene.png']"))
    type_words(browser, "brick", "grass, sand")
    browser.find_element(By.ID, "segment").click()
    text = wait_for(browser, areas)
    assert re.search(r"(brick|grass|sand) \d+ %", text)
    show_heat_map(browser)


def choose(driver, element_id: str, name: str) -> None:
    """Choose a name in a drop-down list."""
    driver.find_element(By.CSS_SELECTOR, f"#{element_id} input").click()
    wait_for(driver, lambda d: d.find_element(By.XPATH, f"//ul[@role='listbox']//li[@aria-label='{name}']")).click()


@in_browser
def test_another_method_is_chosen(browser):
    """Its settings come into the form, and its result in the place of the last one; then a background of words."""
    wait_for(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "tr.tr-body, .gallery-item"))[0].click()
    wait_for(browser, lambda d: len(d.find_elements(By.CSS_SELECTOR, "#words .token")) >= 2)
    browser.find_element(By.ID, "segment").click()
    before = wait_for(browser, areas)
    browser.find_element(By.XPATH, "//button[contains(., 'Settings')]").click()
    threshold = wait_for(browser, lambda d: d.find_element(By.CSS_SELECTOR, "#threshold input[type=number]"))
    assert float(threshold.get_attribute("value")) == 0.4 and "background" not in before

    choose(browser, "method", "naclip")
    wait_for(browser, lambda d: float(threshold.get_attribute("value")) == 0.3)
    wait_for(browser, lambda d: areas(d) not in ("", before))
    browser.find_element(By.CSS_SELECTOR, "#background textarea, #background input").send_keys("sky, wall")
    browser.find_element(By.ID, "segment").click()
    assert wait_for(browser, lambda d: "background" in areas(d))


def text_of(driver, element_id: str) -> str:
    return driver.find_element(By.ID, element_id).text


@in_browser
def test_a_region_is_clicked_and_words_are_negative_and_general(browser, tmp_path):
    """A click ranks words for its region; a negative word takes pixels away; the slider makes classes general."""
    image = draw_scene(seed=7, index=18, size=96, objects=(4, 5)).image
    Image.fromarray(image).save(tmp_path / "scene.png")
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "scene.png"))
    wait_for(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "img[src*='scene.png']"))
    type_words(browser, "marble", "yellow striped | red striped < striped", "purple striped < striped")
    browser.find_element(By.ID, "segment").click()
    assert "not:" not in wait_for(browser, areas)

    # Rank words for the middle of the picture, which is grass
    wait_for(browser, lambda d: d.find_element(By.CSS_SELECTOR, "#regions img")).click()
    ranking = wait_for(browser, lambda d: text_of(d, "ranking"))
    assert "this region of 'yellow striped'" in ranking and "marble" in ranking and "%" in ranking
    choose(browser, "vocabulary", "shapes_val")
    browser.find_element(By.CSS_SELECTOR, "#regions img").click()
    assert wait_for(browser, lambda d: "red striped" in text_of(d, "ranking"))

    # Take the grass away, then ask for parents
    type_words(browser, "not: grass")
    browser.find_element(By.ID, "segment").click()
    wait_for(browser, lambda d: "not: grass 8" in areas(d))
    assert wait_for(browser, lambda d: re.search(r"not: grass\s+0.0\s+8\d", text_of(d, "changes")))
    browser.find_element(By.CSS_SELECTOR, "#specificity input[type=range]").send_keys(Keys.ARROW_RIGHT)
    assert wait_for(browser, lambda d: re.search(r"marble \d+ %, striped \d+ %, not", areas(d)))
    assert wait_for(browser, lambda d: re.search(r"purple striped\s+\d\.\d\s+0\.0\s+-", text_of(d, "changes")))


@in_browser
def test_missing_picture_is_said(browser):
    browser.find_element(By.ID, "segment").click()
    assert wait_for(browser, lambda d: "Give a picture first" in d.find_element(By.TAG_NAME, "body").text)


@in_browser
def test_examples_fill_the_form(browser):
    wait_for(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "tr.tr-body, .gallery-item"))[0].click()
    wait_for(browser, lambda d: len(d.find_elements(By.CSS_SELECTOR, "#words .token")) >= 2)
    browser.find_element(By.ID, "segment").click()
    assert "%" in wait_for(browser, areas)
    if path := os.environ.get("PAGE_SCREENSHOT"):  # README's picture, see CONTRIBUTING.md
        choose(browser, "vocabulary", "shapes_objects_val")
        browser.set_window_size(1280, 1350)
        star, pointer = browser.find_element(By.CSS_SELECTOR, "#regions img"), webdriver.ActionChains(browser)
        pointer.move_to_element_with_offset(star, -90, -15).click().perform()
        wait_for(browser, lambda d: "region of" in text_of(d, "ranking"))
        pointer.move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
        time.sleep(1)  # until the page has settled
        browser.save_screenshot(path)


@pytest.mark.fault("a port for the page that does not exist", "one message")
def test_a_port_that_is_none_is_refused(world):
    done = running.run(world, "-m", "tcl_d2", "app", "--port", 99999999)
    running.check_error(done, "port")


@pytest.mark.fault("a port for the page that is taken", "one message at once, which names --port")
def test_a_port_that_is_taken_is_refused(world):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = running.run(world, "-m", "tcl_d2", "app", "--port", port, "--opts", "MODEL.WEIGHTS", "read after it.pth")
    running.check_error(done, f"--port {port}")
