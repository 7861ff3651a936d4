"""Objects in a map of labels: the connected components of each class."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from scipy import ndimage


class ComponentSettings(NamedTuple):
    """What counts as an object.

    Attributes:
        min_area: smallest area of an object, in pixels.
        connectivity: 8 if pixels that touch at a corner belong together, 4 if they need a common side.
        max_objects: most objects of an image; those with the best scores are kept.
    """

    min_area: int = 30
    connectivity: int = 8
    max_objects: int = 100

    def check(self) -> None:
        """Raise a ValueError for a number out of its range; names the config key."""
        group = "TEST.ZERO_SHOT.CONNECTED_COMPONENTS"
        if self.min_area < 1:
            raise ValueError(f"{group}.MIN_AREA is {self.min_area}; expected at least 1 pixel.")
        if self.connectivity not in (4, 8):
            raise ValueError(f"{group}.CONNECTIVITY is {self.connectivity}; expected 4 or 8 neighbors.")
        if self.max_objects < 1:
            raise ValueError(f"TEST.DETECTIONS_PER_IMAGE is {self.max_objects}; expected at least 1 object.")


class Component(NamedTuple):
    """A connected component.

    Attributes:
        label: index of its class.
        score: mean over its pixels.
        area: in pixels.
        place: rows and columns of its bounding box.
        mask: its pixels in that box, bool [h, w].
    """

    label: int
    score: float
    area: int
    place: tuple[slice, slice]
    mask: np.ndarray


def connected_components(
    labels: np.ndarray, scores: np.ndarray, classes: Collection[int], settings: ComponentSettings
) -> list[Component]:
    """Find the connected components of each class's mask, the best score first.

    Objects of one class that touch become one component, and an object that another one cuts in two becomes two.

    Args:
        labels: class of each pixel, integers [H, W].
        scores: score of that class at each pixel, floats [H, W].
        classes: indices of the classes whose components are objects.
    """
    structure = ndimage.generate_binary_structure(2, settings.connectivity // 4)
    components = []
    for label, place in enumerate(ndimage.find_objects(labels + 1)):
        if place is None or label not in classes:
            continue

        # Number the components of this class, within its bounding box
        numbers, _ = ndimage.label(labels[place] == label, structure)
        areas = np.bincount(numbers.ravel())
        sums = np.bincount(numbers.ravel(), scores[place].ravel())
        for number, part in enumerate(ndimage.find_objects(numbers), start=1):
            if areas[number] >= settings.min_area:
                rows, columns = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(place, part))
                score = float(sums[number] / areas[number])
                mask = numbers[part] == number
                components.append(Component(label, score, int(areas[number]), (rows, columns), mask))

    components.sort(key=lambda component: -component.score)
    return components[: settings.max_objects]
