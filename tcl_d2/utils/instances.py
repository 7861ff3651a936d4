"""Objects in Detectron2's format: made of connected components, drawn by its Visualizer, as COCO has results."""

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from .connected_components import Component
from .visualizer import Color

_MIN_SIDE = 480  # pixels; the boxes of a smaller picture are drawn on a larger one, with room for their words
_DRAWING = Lock()  # matplotlib, on which the Visualizer draws, is not safe in threads


def make_instances(
    components: Sequence[Component], image_size: tuple[int, int], indices: Mapping[int, int]
) -> Instances:
    """Make Detectron2's Instances of connected components.

    Args:
        components: N components.
        image_size: height and width, in pixels.
        indices: of each class whose components these are, among the things.

    Returns:
        instances on the CPU, with:

        pred_boxes: edges of the pixels, fp32 [N, 4], x0, y0, x1, y1.
        scores: fp32 [N].
        pred_classes: indices among the things, int64 [N].
        pred_masks: bool [N, H, W].
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
    """Describe instances as COCO has results: a dict each, as JSON takes it.

    Args:
        instances: of an image, on the CPU.
        image_id: the image's.
        names: of the classes.

    Returns:
        dicts with `image_id`, `category_id` (the class's index), `bbox` (x, y, width, height in pixels), `score`,
        `segmentation` (RLE), and `category`, the class's name.
    """
    results = instances_to_coco_json(instances, image_id)
    return [{**result, "category": names[result["category_id"]]} for result in results]


def draw_boxes(image: np.ndarray, instances: Instances, names: Sequence[str], colors: Sequence[Color]) -> np.ndarray:
    """Draw the boxes of instances with their words and scores, by Detectron2's Visualizer.

    Args:
        image: RGB uint8 [H, W, 3].
        instances: of the image, on the CPU.
        names: of the classes.
        colors: RGB of each class.

    Returns:
        the picture, RGB uint8 [H', W', 3], enlarged where it is small.

    Raises:
        RuntimeError: OpenCV is not installed.
    """
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
    """Check that Detectron2's Visualizer can be used; RuntimeError says what to install."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"boxes are drawn with OpenCV ({error}): pip install opencv-python-headless") from None
