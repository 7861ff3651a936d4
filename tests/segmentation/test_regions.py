"""Masks of the pixels that a user means."""

import numpy as np
import pytest

from tcl_d2.segmentation.regions import as_mask, connected_mask, grow_mask, point_mask

MASK = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0]], bool)


def test_pixels_are_connected_side_by_side():
    assert connected_mask(MASK, 0, 0).astype(int).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert np.array_equal(connected_mask(MASK, 2, 2), point_mask(2, 2, (3, 4)))  # not across corners


def test_a_region_is_a_mask_or_a_point():
    assert np.array_equal(as_mask(MASK.astype(np.uint8), (3, 4)), MASK)
    for point in ((3, 1), [3, 1], np.array([3, 1])):
        assert np.argwhere(as_mask(point, (3, 4))).tolist() == [[1, 3]]


def test_a_point_is_seen_in_a_picture():
    grown = grow_mask(point_mask(500, 300, (800, 1000)))
    assert grown[300, 500] and 100 < grown.sum() < 1000


@pytest.mark.fault("a region outside the image, of another size, or without pixels", "an error says what is expected")
@pytest.mark.parametrize(
    "region, message",
    [
        ((4, 0), r"point is \(4, 0\); expected .* image of 4 x 3 pixels"),
        ((-1, 0), "point is .-1, 0"),
        (MASK.T, r"array bool \[4, 3\]; expected a mask bool \[3, 4\], .* or a point"),
        (np.zeros((3, 4)), "a mask without pixels"),
    ],
)
def test_unusable_regions(region, message):
    with pytest.raises(ValueError, match=message):
        as_mask(region, (3, 4))
