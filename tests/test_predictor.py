"""From pictures and words to masks: the predictor, pictures of what it found, and its files."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from tcl_d2 import drawing, visualization
from tcl_d2.data.shapes import GROUNDS, OBJECTS, draw_scene
from tcl_d2.predictor import Segmentation, TCLPredictor
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def predictor():
    return TCLPredictor(ROOT / "configs/shapes/trained.yaml")


@pytest.fixture
def found():
    scores = torch.zeros(3, 4, 6)
    scores[0] += 0.4
    scores[1, :2] = 0.9
    scores[2, :, :2] = 0.7
    image = np.full((4, 6, 3), 100, np.uint8)
    return Segmentation(image, ["background", "cat", "a dog"], scores, background=True)


def test_shipped_model_finds_what_is_there(predictor):
    """On scenes that it was not trained on, most pixels get the right one of all words."""
    words, right = [*OBJECTS, *GROUNDS], []
    for index in range(6):
        scene = draw_scene(seed=7, index=index, size=96, objects=(2, 4))
        right.append((predictor(scene.image, words).labels == scene.label).mean())
    assert np.mean(right) > 0.5


def test_all_kinds_of_images_give_the_same(predictor, tmp_path):
    image = draw_scene(seed=7, index=0, size=60).image[:50]
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    kinds = [image, Image.fromarray(image), path, str(path)]
    results = predictor(kinds, ["brick", "sand"], background=True)
    assert results[0].scores.shape == (3, 50, 60) and results[0].classes == ["background", "brick", "sand"]
    for other in results[1:]:
        assert torch.equal(other.scores, results[0].scores)
    assert isinstance(predictor(path, ["brick"]), Segmentation)


def test_runs_without_a_gpu_and_says_so(monkeypatch, caplog):
    """A config made for GPUs serves on a laptop."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(logging.getLogger("tcl_d2"), "propagate", True)
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", "MODEL.DEVICE", "cuda", "MODEL.WEIGHTS", "")
    assert predictor.model.device.type == "cpu"
    assert "torch finds no GPU here" in caplog.text and "MODEL.WEIGHTS is empty" in caplog.text


@pytest.mark.parametrize(
    "image, words, message",
    [
        ("/none.png", ["a"], "/none.png"),
        (np.zeros((3, 5, 5), np.float32), ["a"], r"not float32 \[3, 5, 5\]"),
        (7, ["a"], "not int"),
        (np.zeros((9, 9, 3), np.uint8), [], "at least one class word"),
        (np.zeros((9, 9, 3), np.uint8), ["a", " "], "not blank"),
        (np.zeros((9, 9, 3), np.uint8), ["a", "a"], "twice: a"),
    ],
)
def test_bad_input_is_named(predictor, image, words, message):
    with pytest.raises(ValueError, match=message):
        predictor(image, words)


def test_masks_and_areas(found):
    assert found.areas() == {"background": 8 / 24, "cat": 12 / 24, "a dog": 4 / 24}
    assert found.mask("cat")[:2].all() and found.mask("a dog")[2:, :2].all() and found.mask("cat").sum() == 12
    with pytest.raises(KeyError, match="'bird' is no class .*cat, a dog"):
        found.mask("bird")


def test_overlay_leaves_the_background_and_colours_the_classes(found):
    picture = visualization.draw_overlay(found)
    factor = 80  # 6 pixels become 480
    inside = picture[factor // 2 : 4 * factor : factor, factor // 2 : 6 * factor : factor]
    assert (inside[found.labels == 0] == 100).all()
    assert len({tuple(color) for color in inside[found.labels == 1]}) == 1
    assert not (inside[found.labels > 0] == 100).all(1).any()
    assert picture.shape[0] > 4 * factor  # the legend


def test_heat_map_is_red_where_the_score_is_high(found):
    picture = visualization.draw_heat_map(found, "a dog").astype(int)
    assert (picture[:, :2, 0] > picture[:, :2, 2]).all() and (picture[:, 3:, 0] < picture[:, :2, 0].min()).all()


def test_files(found, tmp_path):
    paths = visualization.save(found, tmp_path, "x", heat_maps=True)
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    assert {"x.png", "x_labels.png", "x_2_a_dog.png", "x.json"} <= {path.name for path in paths}
    assert np.array_equal(np.array(Image.open(tmp_path / "x_labels.png")), found.labels)
    assert json.loads((tmp_path / "x.json").read_text())["areas"]["cat"] == 0.5


def test_legend_of_many_classes_is_broken_into_lines():
    colors = [(0, 0, 0)] * 40
    strip = drawing.draw_legend([(f"class number {i}", color) for i, color in enumerate(colors)], 300)
    assert strip.shape[1] == 300 and strip.shape[0] > 20 * 24
