"""Objects of a segmentation in Detectron2's formats: connected components as instances, and as panoptic segments."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...segmentation.objects import Component, ComponentSettings, connected_components, make_instances
from ...words.datasets import Category
from ...words.vocabulary import WordSubset

OUTPUTS = ("instances", "panoptic_seg")


def add_objects(output: dict, subset: WordSubset, settings: ComponentSettings, wanted: Sequence[str]) -> None:
    """Add the objects to a segmentation's output, in place.

    Args:
        output: has `sem_seg`, or `sem_seg_labels` and `sem_seg_scores`, see ZeroShotSegmentor.
        subset: the classes.
        settings: what counts as an object.
        wanted: those of OUTPUTS to add, see make_instances and make_panoptic_seg.
    """
    if "sem_seg" in output:
        scores, labels = output["sem_seg"].max(0)
    else:
        scores, labels = output["sem_seg_scores"], output["sem_seg_labels"]
    labels, scores = labels.cpu().numpy(), scores.cpu().numpy()

    categories = subset.categories_by_class()
    things = [index for index, category in categories.items() if category.is_thing]
    components = connected_components(labels, scores, things, settings)
    if "instances" in wanted:
        indices = {label: category.index for label, category in categories.items()}
        output["instances"] = make_instances(components, labels.shape, indices)
    if "panoptic_seg" in wanted:
        output["panoptic_seg"] = make_panoptic_seg(components, labels, categories, settings.min_area)


def make_panoptic_seg(
    components: Sequence[Component], labels: np.ndarray, categories: dict[int, Category], min_area: int
) -> tuple[Tensor, list[dict]]:
    """Make a panoptic segmentation: things by connected components, stuff by class.

    Args:
        components: of the things.
        labels: class of each pixel, int64 [H, W].
        categories: of each class index.
        min_area: smallest area of a segment of stuff, in pixels.

    Returns:
        the segment of each pixel, int32 [H, W] on the CPU, 0 for none; and a dict a segment:

        id: of the segment, from 1.
        isthing: whether it is an object (bool).
        category_id: index among the things, or among the stuff.
        area: in pixels.
        score: mean score of an object's pixels; stuff has none.
    """
    segments = np.zeros(labels.shape, np.int32)
    infos = []
    for component in components:
        infos.append({"id": len(infos) + 1, "isthing": True, "category_id": categories[component.label].index})
        infos[-1].update(area=component.area, score=component.score)
        segments[component.place][component.mask] = len(infos)

    # Stuff, each class as a whole
    areas = np.bincount(labels.ravel())
    for label, category in categories.items():
        if not category.is_thing and label < len(areas) and areas[label] >= min_area:
            infos.append({"id": len(infos) + 1, "isthing": False, "category_id": category.index})
            infos[-1]["area"] = int(areas[label])
            segments[labels == label] = len(infos)
    return torch.from_numpy(segments), infos
