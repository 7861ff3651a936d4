"""What a user gets: a segmentation, its pictures, objects, regions and files."""

from .result import Segmentation, is_result_picture, result_paths, shorten

__all__ = ["Segmentation", "is_result_picture", "result_paths", "shorten"]
