"""What a user gets: a segmentation, its pictures, objects, regions and files."""

from .result import Segmentation

__all__ = ["Segmentation"]
