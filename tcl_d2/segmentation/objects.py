"""Objects in a map of labels: connected components of each class, as Detectron2's Instances, drawings, COCO results."""

from collections.abc import Collection, Mapping, Sequence
from threading import Lock
from typing import NamedTuple, cast

import numpy as np
import scipy  # which loads its parts when they are used
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from ..config.ranges import check_values
from ..utils.imports import import_optional
from .drawing import Color

_MIN_SIDE = 480  # pixels; the boxes of a smaller picture are drawn on a larger one, with room for their words
_DRAWING = Lock()  # matplotlib, on which the Visualizer draws, is not safe in threads


class ComponentSettings(NamedTuple):
    """The size and connectivity of objects, and how many there are at most.

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
        section = "TEST.ZERO_SHOT.CONNECTED_COMPONENTS"
        check_values(section, MIN_AREA=self.min_area, CONNECTIVITY=self.connectivity)
        check_values("TEST", DETECTIONS_PER_IMAGE=self.max_objects)


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
    structure = scipy.ndimage.generate_binary_structure(2, settings.connectivity // 4)
    components = []
    for label, place in enumerate(scipy.ndimage.find_objects(labels + 1)):
        if place is None or label not in classes:
            continue

        # Number the components of this class, within its bounding box
        numbers, _ = cast(tuple[np.ndarray, int], scipy.ndimage.label(labels[place] == label, structure))
        areas = np.bincount(numbers.ravel())
        sums = np.bincount(numbers.ravel(), scores[place].ravel())
        for number, part in enumerate(scipy.ndimage.find_objects(numbers), start=1):
            if areas[number] >= settings.min_area:
                rows, columns = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(place, part))
                score = float(sums[number] / areas[number])
                mask = numbers[part] == number
                components.append(Component(label, score, int(areas[number]), (rows, columns), mask))

    components.sort(key=lambda component: -component.score)
    return components[: settings.max_objects]


def make_instances(
    components: Sequence[Component], image_size: tuple[int, int], indices: Mapping[int, int]
) -> Instances:
    """Make Detectron2's Instances of connected components, on the CPU.

    Args:
        image_size: height and width, in pixels.
        indices: index of each class among the things.
    """
    masks = np.zeros((len(components), *image_size), bool)
    boxes = np.zeros((len(components), 4), np.float32)
    for mask, box, component in zip(masks, boxes, components):
        rows, columns = component.place
        mask[component.place] = component.mask
        box[:] = columns.start, rows.start, columns.stop, rows.stop

    instances = Instances(image_size)
    instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    instances.scores = torch.tensor([component.score for component in components], dtype=torch.float32)
    instances.pred_classes = torch.tensor([indices[component.label] for component in components], dtype=torch.int64)
    instances.pred_masks = torch.from_numpy(masks)
    return instances


def coco_results(instances: Instances, image_id: int | str, names: Sequence[str]) -> list[dict]:
    """Return instances in COCO's format of results, each with its class's index, and its name as `category`."""
    results = instances_to_coco_json(instances, image_id)
    return [{**result, "category": names[result["category_id"]]} for result in results]


def draw_boxes(image: np.ndarray, instances: Instances, names: Sequence[str], colors: Sequence[Color]) -> np.ndarray:
    """Draw the boxes of instances over an RGB image, enlarged if it is small; RuntimeError without OpenCV."""
    check_opencv()
    from detectron2.utils.visualizer import ColorMode, Visualizer

    instances = Instances(instances.image_size, **instances.get_fields())
    instances.remove("pred_masks")
    words = [name.replace("$", r"\$") for name in names]  # matplotlib's sign of a formula
    metadata = Metadata(thing_classes=words, thing_colors=list(colors))
    scale = max(1.0, _MIN_SIDE / max(image.shape[:2]))
    with _DRAWING:
        visualizer = Visualizer(image, metadata, scale, ColorMode.SEGMENTATION)
        return visualizer.draw_instance_predictions(instances, jittering=False).get_image()


def check_opencv() -> None:
    """Check that Detectron2's Visualizer can be used."""
    import_optional("cv2", "drawing boxes with OpenCV", "opencv-python-headless")
