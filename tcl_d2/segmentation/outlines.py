"""Outlines of masks as polygons, along the borders of pixels: pixel (x, y) covers x..x + 1 and y..y + 1."""

from typing import cast

import numpy as np

# By direction (right, down, left, up): the step of a corner (x, y), and the pixels (y, x) ahead to the left and right
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_AHEAD = (((-1, 0), (0, 0)), ((0, 0), (0, -1)), ((0, -1), (-1, -1)), ((-1, -1), (-1, 0)))


def label_outlines(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Outline the regions of a label map: drawn filled and in their order, the polygons give the map again.

    A region is the connected part of a class, pixels side by side. Its holes are filled by the regions in them, which
    come later. Regions of the class 0 that touch the border are left out.

    Args:
        labels: class of each pixel, integers [H, W].

    Returns:
        the class and the corners (x, y), integers [n, 2], of each region.
    """
    import scipy  # which loads its parts when they are used

    outlines = []
    padded = np.pad(labels, 1, constant_values=-1)
    for label in np.unique(labels).tolist():
        numbers, _ = cast(tuple[np.ndarray, int], scipy.ndimage.label(padded == label))
        at_border = np.unique(np.concatenate([numbers[1], numbers[-2], numbers[:, 1], numbers[:, -2]]))
        for number, part in enumerate(scipy.ndimage.find_objects(numbers), start=1):
            if label or number not in at_border:
                rows, columns = part
                corners = _trace(np.pad(numbers[part] == number, 1)) + [columns.start - 2, rows.start - 2]
                outlines.append((label, corners))

    # A region around another one has a larger outline
    return sorted(outlines, key=lambda outline: -_area(outline[1]))


def _trace(mask: np.ndarray) -> np.ndarray:
    """Return the corners (x, y), integers [n, 2], of a connected mask bool [H, W] whose border is empty, clockwise."""
    rows = mask.tolist()  # single elements of lists are read faster than those of arrays
    y, x = divmod(int(mask.argmax()), mask.shape[1])  # the first pixel of the first row, reached from below
    direction, corners = 3, []
    while not corners or (x, y) != corners[0]:
        # Where pixels touch at a corner alone, the path stays at its own
        (left_y, left_x), (right_y, right_x) = _AHEAD[direction]
        turn = 1 if not rows[y + right_y][x + right_x] else -1 if rows[y + left_y][x + left_x] else 0
        if turn:
            corners.append((x, y))
            direction = (direction + turn) % 4
        x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
    return np.array(corners)


def _area(corners: np.ndarray) -> float:
    """Return the area within a polygon [n, 2] that does not cross itself."""
    x, y = corners.T.astype(float)
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def find_crossing(corners: np.ndarray) -> tuple[int, int] | None:
    """Return two sides of a polygon [n, 2] that cross, by the numbers of their first corners; None if none do.

    Sides that touch, or lie on each other, do not cross. Outlines along pixels, whose sides are many, are not searched.
    """
    starts, ends = corners.astype(float), np.roll(corners, -1, 0).astype(float)
    if (starts == ends).any(1).all():
        return None
    left, right = np.minimum(starts[:, 0], ends[:, 0]), np.maximum(starts[:, 0], ends[:, 0])
    order = np.argsort(left, kind="stable")
    lasts = np.searchsorted(left[order], right)  # a side can cross those alone that begin before its right end
    for place, side in enumerate(order):
        others = order[place + 1 : lasts[side]]
        line, lines = (starts[side], ends[side]), (starts[others], ends[others])
        is_apart = _turn(*line, starts[others]) * _turn(*line, ends[others]) >= 0
        is_apart |= _turn(*lines, starts[side]) * _turn(*lines, ends[side]) >= 0
        if not is_apart.all():
            return int(side), int(others[~is_apart][0])
    return None


def _turn(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return on which side of a line points [..., 2] lie: 1, -1, or 0 on it."""
    (dx, dy), (px, py) = (end - start).T, (point - start).T
    return np.sign(dx * py - dy * px)
