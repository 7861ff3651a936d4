"""The choice of prompt templates without labels: the entropies, the choice, and a file of words that methods read."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.data import register_benchmark_folder
from tcl_d2.data.shapes import draw_scene
from tcl_d2.evaluation import template_choice
from tcl_d2.evaluation.dataset_settings import words_from_config
from tcl_d2.evaluation.template_choice import choose_templates, entropy_by_class, measure_entropies, write_words
from tcl_d2.words.files import read_class_words
from tests.modeling.conftest import build_small

TEMPLATES = ("a {}", "the {}", "a red {}")
CLASSES = [["brick"], ["lava", "red brick"], ["grass"]]


def test_entropies_are_those_of_a_loop():
    scores = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0))
    scores[3] = -1  # a class without pixels
    entropies, pixels = entropy_by_class(scores, 10.0)
    expected, counts = [0.0] * 4, [0] * 4
    for values in scores.flatten(1).T.tolist():
        weights = [math.exp(10 * value) for value in values]
        label = values.index(max(values))
        expected[label] -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
        counts[label] += 1
    assert pixels.tolist() == counts and counts[3] == 0
    assert entropies.tolist() == pytest.approx(expected)


def test_a_class_gets_the_templates_with_the_lowest_entropies():
    nan = math.nan
    entropies = np.array([[0.3, nan, nan], [0.1, nan, 0.4], [0.2, nan, nan], [0.1, nan, 0.2]])
    assert choose_templates(entropies, 2) == [[1, 3], [], [3, 1]]
    assert choose_templates(entropies, 4) == [[1, 3, 2, 0], [], [3, 1]]


@pytest.fixture
def pictures(tmp_path) -> list[dict]:
    for index in range(3):
        Image.fromarray(draw_scene(7, index, size=48).image).save(tmp_path / f"{index}.png")
    return [{"file_name": str(tmp_path / f"{index}.png")} for index in range(3)]


def measure(folder, rows):
    cfg = load_config("shapes/maskclip.yaml", ["TEST.ZERO_SHOT.SKIP_BROKEN", True])
    return measure_entropies(cfg, build_small(), CLASSES, TEMPLATES, rows, folder)


@pytest.mark.fault("a choice of templates that is stopped", "goes on where it was, with equal figures")
def test_a_stopped_run_goes_on(tmp_path, pictures, monkeypatch):
    expected = measure(tmp_path / "whole", pictures)
    assert np.nansum(expected[0]) > 0 and expected[1].sum(1).tolist() == 3 * [3 * 96 * 96]

    # The first run ends in the third picture; the second does that one alone
    add_image, seen = template_choice._add_image, []

    def add_two(*arguments):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        add_image(*arguments)

    monkeypatch.setattr(template_choice, "_add_image", add_two)
    monkeypatch.setattr("tcl_d2.evaluation.progress.PERIOD", -1)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "stopped", pictures)
    for again, theirs in zip(measure(tmp_path / "stopped", pictures), expected, strict=True):
        np.testing.assert_array_equal(again, theirs)
    assert len(seen) == 4


def test_the_model_keeps_its_settings_and_broken_pictures_count_nowhere(tmp_path, pictures):
    cfg, model = load_config("shapes/maskclip.yaml", ["TEST.ZERO_SHOT.SKIP_BROKEN", True]), build_small()
    before = model.protocol
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = [{"file_name": str(tmp_path / "broken.png")}, pictures[0]]
    _, pixels = measure_entropies(cfg, model, CLASSES, TEMPLATES, rows, tmp_path / "out")
    assert pixels.sum(1).tolist() == 3 * [96 * 96] and model.protocol == before


def test_an_evaluation_reads_the_chosen_templates(tmp_path):
    """Of the words of each class; a benchmark's background without words has no line in the file."""
    (tmp_path / "classes.txt").write_text("background\nbrick\nlava, red brick\ngrass\n")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 6)).save(tmp_path / folder / "0.png")
    data = register_benchmark_folder(str(tmp_path))
    words = template_choice.words_to_choose_for(load_config("shapes/maskclip.yaml"), data)
    assert words == CLASSES

    write_words(tmp_path / "words.txt", words, [("the {}",), ("a {}", "a red {}"), ()])
    cfg = load_config("shapes/maskclip.yaml", ["TEST.ZERO_SHOT.WORDS", tmp_path / "words.txt"])
    own = words_from_config(cfg, data)
    assert own == [["brick @ the {}"], ["lava @ a {} @ a red {}", "red brick @ a {} @ a red {}"], ["grass"]]
    assert template_choice.words_to_choose_for(cfg, data) == CLASSES  # a second choice begins from the words

    model = build_small()
    model.set_dataset(data, class_words={data: own})
    text, (subset,) = model._classes({})
    expected = [("brick", ["the {}"]), ("lava", ["a {}", "a red {}"]), ("red brick", ["a {}", "a red {}"])]
    expected.append(("grass", model.templates))
    rows = [model.embed_vocabulary([word], templates) for word, templates in expected]
    torch.testing.assert_close(text, torch.cat(rows))
    assert subset.classes.tolist() == [1, 2, 2, 3]


@pytest.mark.fault("a chosen template with a comma, which separates words in the file", "refused by the template")
def test_a_template_that_a_file_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a {}, b'; expected none with a comma"):
        write_words(tmp_path / "words.txt", CLASSES, [("a {}, b",), (), ()])
    with pytest.raises(ValueError, match="prompt templates of its own"):
        write_words(tmp_path / "words.txt", CLASSES, [("a {} @ b",), (), ()])
    write_words(tmp_path / "words.txt", CLASSES, [(), (), ()])
    assert read_class_words(tmp_path / "words.txt") == CLASSES
