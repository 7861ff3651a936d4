"""Objects in Detectron2's format: from connected components to Instances, drawings, and COCO results."""

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from .components import Component
from .drawing import Color

_MIN_SIDE = 480  # pixels; the boxes of a smaller picture are drawn on a larger one, with room for their words
_DRAWING = Lock()  # matplotlib, on which the Visualizer draws, is not safe in threads


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
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"boxes are drawn with OpenCV ({error}): pip install opencv-python-headless") from None
