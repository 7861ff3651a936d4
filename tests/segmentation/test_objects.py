"""Objects in a map of labels: what belongs together, its score, and which objects are kept."""

import numpy as np
import pytest

from tcl_d2.segmentation.objects import ComponentSettings, connected_components

EVERYTHING = ComponentSettings(min_area=1)


def draw(*rows: str) -> np.ndarray:
    return np.array([[int(letter) for letter in row] for row in rows])


LABELS = draw(
    "11000022",
    "11000022",
    "00110020",
    "00110333",
)


def find(settings: ComponentSettings = EVERYTHING, classes=(1, 2, 3), scores=None) -> list[tuple[int, int]]:
    scores = np.ones(LABELS.shape) if scores is None else scores
    return [(component.label, component.area) for component in connected_components(LABELS, scores, classes, settings)]


def test_corners_join_by_8_neighbors_and_not_by_4():
    assert sorted(find()) == [(1, 8), (2, 5), (3, 3)]
    assert sorted(find(EVERYTHING._replace(connectivity=4))) == [(1, 4), (1, 4), (2, 5), (3, 3)]


def test_objects_of_one_class_that_touch_are_one_and_of_two_classes_two():
    assert sorted(find(classes=(2, 3))) == [(2, 5), (3, 3)]
    merged = np.where(LABELS == 3, 2, LABELS)
    (component,) = connected_components(merged, np.ones(LABELS.shape), (2,), EVERYTHING)
    assert component.area == 8 and component.place == (slice(0, 4), slice(5, 8))
    assert np.array_equal(component.mask, merged[:, 5:] == 2)


def test_scores_are_means_of_the_pixels_and_order_the_objects():
    scores = np.linspace(0, 1, LABELS.size).reshape(LABELS.shape)
    components = connected_components(LABELS, scores, (1, 2, 3), EVERYTHING)
    assert [component.label for component in components] == [3, 1, 2]
    for component in components:
        assert component.score == pytest.approx(scores[component.label == LABELS].mean())


def test_small_objects_are_left_out_and_the_best_are_kept():
    assert sorted(find(EVERYTHING._replace(min_area=5))) == [(1, 8), (2, 5)]
    scores = np.where(LABELS == 2, 0.9, 0.5)
    assert find(EVERYTHING._replace(max_objects=1), scores=scores) == [(2, 5)]


def test_no_object_is_an_empty_list():
    assert find(classes=()) == [] and find(classes=(7,)) == [] and find(EVERYTHING._replace(min_area=99)) == []


@pytest.mark.fault("numbers of connected components out of their range", "an error names the key")
@pytest.mark.parametrize(
    "settings, key",
    [({"min_area": 0}, "MIN_AREA is 0"), ({"connectivity": 6}, "CONNECTIVITY"), ({"max_objects": 0}, "DETECTIONS_PER")],
)
def test_numbers_out_of_range_name_the_key(settings, key):
    with pytest.raises(ValueError, match=key):
        EVERYTHING._replace(**settings).check()
