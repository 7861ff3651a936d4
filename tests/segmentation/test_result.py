"""A segmentation: its areas and masks, its pictures, and its files."""

import json
import sys
from dataclasses import replace

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image

from tcl_d2.segmentation import Segmentation
from tcl_d2.segmentation.objects import ComponentSettings
from tcl_d2.segmentation.result import shorten
from tcl_d2.words.parsing import NO_CLASS


@pytest.fixture
def segmentation():
    scores = torch.zeros(3, 4, 6)
    scores[0] += 0.4
    scores[1, :2] = 0.9
    scores[2, :, :2] = 0.7
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = scores.argmax(0).numpy()
    return Segmentation(image, ["background", "cat", "a dog"], labels, background=True, scores=scores)


def test_masks_and_areas_are_of_the_labels(segmentation):
    assert segmentation.areas() == {"background": 8 / 24, "cat": 12 / 24, "a dog": 4 / 24}
    assert segmentation.mask("cat")[:2].all() and segmentation.mask("cat").sum() == 12
    assert segmentation.mask("a dog")[2:, :2].all()
    with pytest.raises(KeyError, match="'bird' .*cat, a dog"):
        segmentation.mask("bird")


def test_overlay_leaves_the_background_and_colors_the_classes(segmentation):
    picture = segmentation.draw_overlay()
    factor = 80  # 6 pixels become 480
    inside = picture[factor // 2 : 4 * factor : factor, factor // 2 : 6 * factor : factor]
    assert (inside[segmentation.labels == 0] == 100).all()
    assert len({tuple(color) for color in inside[segmentation.labels == 1]}) == 1
    assert not (inside[segmentation.labels > 0] == 100).all(1).any()
    assert picture.shape[0] > 4 * factor  # the legend


def test_what_negative_words_took_is_left_as_it_is(segmentation):
    """As the background is; its pixels are single ones to a click, and in the legend and the areas it has its name."""
    segmentation.classes[2], segmentation.negative = "not: shadow", True
    assert segmentation.plain_classes() == [0, 2] and segmentation.colors()[2] == (0, 0, 0)
    assert segmentation.areas()["not: shadow"] == 4 / 24 and "not: shadow 17 %" in segmentation.describe_areas()
    inside = segmentation.draw_classes()[40::80, 40::80]
    assert np.array_equal((inside == 100).all(2), segmentation.labels != 1)
    assert segmentation.region(0, 3).sum() == 1


def test_regions_are_connected_pixels_of_a_class(segmentation):
    segmentation.labels[3, 5] = 1
    assert segmentation.region(2, 1).sum() == 12 and segmentation.region(2, 1)[:2].all()
    assert np.argwhere(segmentation.region(5, 3)).tolist() == [[3, 5]]
    assert np.argwhere(segmentation.region(4, 3)).tolist() == [[3, 4]]  # of the background, the pixel alone
    with pytest.raises(ValueError, match=r"\(6, 0\).*6 x 4"):
        segmentation.region(6, 0)


def test_areas_are_compared_by_word(segmentation):
    labels = np.where(segmentation.labels == 2, 1, 0)
    now = Segmentation(segmentation.image, ["cat", "bird"], labels)
    assert now.area_changes(segmentation) == {
        "background": (8 / 24, 0),
        "cat": (12 / 24, 20 / 24),
        "a dog": (4 / 24, 0),
        "bird": (0, 4 / 24),
    }


def test_overlays_of_a_video_are_of_one_size(segmentation):
    frame = Segmentation(segmentation.image, segmentation.classes, np.zeros((4, 6), np.int64), background=True)
    assert frame.draw_overlay(shares=False).shape == segmentation.draw_overlay(shares=False).shape


def test_heat_map_is_red_where_the_score_is_high(segmentation):
    picture = segmentation.draw_heat_map("a dog").astype(int)
    assert (picture[:, :2, 0] > picture[:, :2, 2]).all() and (picture[:, 3:, 0] < picture[:, :2, 0].min()).all()


def test_scores_of_8_bits_give_the_same_heat_map(segmentation):
    picture = segmentation.draw_heat_map("cat").astype(int)
    segmentation.scores = (255 * segmentation.scores).round().byte()
    assert abs(segmentation.draw_heat_map("cat") - picture).max() <= 3


def test_files_hold_overlay_labels_areas_and_heat_maps(segmentation, tmp_path):
    paths = segmentation.save(tmp_path, "x", heat_maps=True)
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    assert {"x.png", "x_labels.png", "x_2_a_dog.png", "x.json"} <= {path.name for path in paths}
    assert json.loads((tmp_path / "x.json").read_text())["areas"]["cat"] == 0.5
    with Image.open(tmp_path / "x_labels.png") as labels:
        assert np.array_equal(np.array(labels), segmentation.labels)
        assert labels.getpalette()[:6] == [0, 0, 0, *segmentation.colors()[1]]


def test_heat_maps_need_scores_and_no_box_is_written_without(segmentation, tmp_path):
    labels = replace(segmentation, scores=None, label_scores=np.asarray(segmentation.scores.amax(0)))
    with pytest.raises(ValueError, match="labels alone"):
        labels.save(tmp_path, "x", heat_maps=True, boxes=True)
    assert not any(tmp_path.iterdir())


def test_heat_maps_need_scores_and_no_file_is_written_without(segmentation, tmp_path):
    segmentation.scores = None
    with pytest.raises(ValueError, match="labels_only=False"):
        segmentation.save(tmp_path, "x", heat_maps=True)
    assert not list(tmp_path.iterdir())


def test_long_words_are_shortened_in_file_names(segmentation, tmp_path):
    segmentation.classes[1:] = ["viele Bäume " * 30 + end for end in "ab"]
    paths = segmentation.save(tmp_path, shorten("ä" * 120), heat_maps=True)
    assert len(set(paths)) == 6 and all(path.is_file() for path in paths)


# ------------------------------------------------------------------------------------ objects

EVERYTHING = {"min_area": 1}


def test_objects_have_the_mean_score_of_their_class(segmentation):
    """From all scores, from those of the labels, and from 8 bits; the background is no object."""
    instances = segmentation.instances(**EVERYTHING)
    assert segmentation.things() == ["cat", "a dog"]
    assert instances.pred_classes.tolist() == [0, 1] and instances.scores.tolist() == pytest.approx([0.9, 0.7])
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 6, 2], [0, 2, 2, 4]]
    for name, mask in zip(segmentation.things(), instances.pred_masks):
        assert np.array_equal(mask, segmentation.mask(name))

    labels_only = replace(segmentation, scores=None, label_scores=np.asarray(segmentation.scores.amax(0)))
    assert labels_only.instances(**EVERYTHING).scores.tolist() == instances.scores.tolist()
    segmentation.scores = (255 * segmentation.scores).round().byte().numpy()
    assert segmentation.instances(**EVERYTHING).scores.tolist() == pytest.approx([0.9, 0.7], abs=0.002)


def test_settings_of_objects_are_those_of_the_model_or_given(segmentation):
    assert len(segmentation.instances()) == 0  # smaller than the default
    segmentation.components = ComponentSettings(min_area=5)
    assert segmentation.instances().pred_classes.tolist() == [0]
    assert len(segmentation.instances(min_area=4, max_objects=1)) == 1
    with pytest.raises(ValueError, match="CONNECTIVITY is 3"):
        segmentation.instances(connectivity=3)


def test_what_is_of_no_class_is_no_object(segmentation):
    segmentation.classes[2] = NO_CLASS
    assert segmentation.things() == ["cat"] and segmentation.instances(**EVERYTHING).pred_classes.tolist() == [0]


@pytest.mark.fault("objects of a segmentation with labels alone", "an error says what to ask for; no file is written")
def test_objects_need_scores(segmentation, tmp_path):
    segmentation.scores = None
    with pytest.raises(ValueError, match="label_scores=True"):
        segmentation.save(tmp_path, "x", boxes=True)
    assert not list(tmp_path.iterdir())


def test_boxes_are_drawn_with_words_and_written_as_coco_has_results(segmentation, tmp_path):
    pytest.importorskip("cv2")
    segmentation.components = ComponentSettings(min_area=1)
    segmentation.classes[2] = "a $5 dog for $1"  # which matplotlib takes for a formula
    paths = segmentation.save(tmp_path, "x", heat_maps=True, boxes=True)
    assert sorted(paths) == sorted(tmp_path.iterdir()) and tmp_path / "x_boxes.png" in paths

    # Boxes have the colors of their classes, and change nothing far from their edges and words
    picture = segmentation.draw_boxes()
    assert picture.shape == (320, 480, 3) and not (picture == 100).all() and (picture[300:, 300:] == 100).all()
    assert np.array_equal(picture, np.asarray(Image.open(tmp_path / "x_boxes.png")))

    results = json.loads((tmp_path / "x_boxes.json").read_text())
    assert [(result["category"], result["category_id"], result["bbox"]) for result in results] == [
        ("cat", 0, [0, 0, 6, 2]), ("a $5 dog for $1", 1, [0, 2, 2, 2])
    ]  # fmt: skip
    for result in results:
        mask = pycocotools.mask.decode(result["segmentation"])
        assert result["image_id"] == "x" and np.array_equal(mask, segmentation.mask(result["category"]))


def test_no_object_is_an_empty_list(segmentation, tmp_path):
    pytest.importorskip("cv2")
    segmentation.save(tmp_path, "x", boxes=True)
    assert json.loads((tmp_path / "x_boxes.json").read_text()) == []


@pytest.mark.fault("boxes without OpenCV", "an error says what to install; no file is written")
def test_boxes_need_opencv(segmentation, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeError, match="OpenCV.*opencv-python-headless"):
        segmentation.save(tmp_path, "x", boxes=True)
    assert not list(tmp_path.iterdir())


def test_it_is_written_in_a_line(segmentation):
    assert repr(segmentation) == "Segmentation(6 x 4, 3 classes: cat 50 %, background 33 %, a dog 17 %)"


def test_it_becomes_detections_of_supervision(segmentation):
    supervision = pytest.importorskip("supervision")
    detections = segmentation.to_detections(min_area=1)
    objects = segmentation.instances(min_area=1)
    assert isinstance(detections, supervision.Detections) and len(detections) == len(objects) == 2
    assert detections["class_name"].tolist() == ["cat", "a dog"] and detections.class_id.tolist() == [0, 1]
    assert detections.mask[0].sum() == 12 and detections.xyxy[1].tolist() == [0, 2, 2, 4]
    assert len(supervision.Detections.merge([detections, detections])) == 4


@pytest.mark.fault("Segmentation.to_detections without supervision", "one error says what to install")
def test_detections_without_supervision(segmentation, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(RuntimeError, match="to_detections needs supervision.*pip install supervision"):
        segmentation.to_detections()


def test_it_is_drawn_by_matplotlib(segmentation):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = segmentation.plot()
    assert segmentation.plot(axes) is axes and np.array_equal(axes.images[0].get_array(), segmentation.draw_overlay())
