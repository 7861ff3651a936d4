"""The small world: scenes that are drawn from a seed, and their objects in COCO's formats."""

from .objects import INSTANCES, PANOPTIC, write_annotations
from .scenes import GROUNDS, HELD_OUT, MIN_VISIBLE, NOVEL, OBJECTS, Scene, draw_scene

__all__ = [
    "GROUNDS",
    "HELD_OUT",
    "INSTANCES",
    "MIN_VISIBLE",
    "NOVEL",
    "OBJECTS",
    "PANOPTIC",
    "Scene",
    "draw_scene",
    "write_annotations",
]
