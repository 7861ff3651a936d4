"""Outlines of masks: drawn again they are the masks, and polygons that cross themselves are found."""

import numpy as np
import pycocotools.mask
import pytest

from tcl_d2.segmentation.outlines import find_crossing, label_outlines


def draw(labels: np.ndarray) -> np.ndarray:
    """Fill the outlines of a label map, one over the other."""
    drawn = np.zeros(labels.shape, int)
    for label, corners in label_outlines(labels):
        rles = pycocotools.mask.frPyObjects([corners.ravel().astype(float).tolist()], *labels.shape)
        drawn[pycocotools.mask.decode(rles)[..., 0] == 1] = label
    return drawn


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_outlines_drawn_again_are_the_labels(num_classes):
    """Of single pixels, holes, regions in holes, and pixels that touch at a corner."""
    rng = np.random.default_rng(num_classes)
    for _ in range(40):
        labels = rng.integers(0, num_classes, rng.integers(1, 14, 2))
        np.testing.assert_array_equal(draw(labels), labels)


def test_an_outline_has_corners_alone_and_a_hole_has_its_own():
    labels = np.zeros((6, 7), int)
    labels[1:5, 1:6] = 1
    labels[2:4, 2:4] = 0
    (first, outer), (second, inner) = label_outlines(labels)
    assert (first, second) == (1, 0)
    assert outer.tolist() == [[1, 1], [6, 1], [6, 5], [1, 5]] and inner.tolist() == [[2, 2], [4, 2], [4, 4], [2, 4]]


@pytest.mark.parametrize(
    "corners, crossing",
    [
        ([[0, 0], [4, 4], [4, 0], [0, 4]], (0, 2)),
        ([[0, 0], [4, 4], [8, 0], [8, 9], [4, 4], [0, 9]], None),  # touches itself at a corner
        ([[0, 0], [5, 1], [9, 0], [7, 5], [9, 9], [4, 8]], None),
        ([[0, 0], [9, 1], [9, 9], [3, 8], [2, -1]], (0, 3)),
    ],
)
def test_sides_that_cross_are_found(corners, crossing):
    found = find_crossing(np.array(corners, float))
    assert found is None if crossing is None else sorted(found) == sorted(crossing)
