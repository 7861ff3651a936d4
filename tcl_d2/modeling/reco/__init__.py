"""Parts of ReCo (Shin et al., NeurIPS 2022): the index of an archive, co-segmentation, and what has been made."""

from .cosegmentation import find_seeds, make_reference, weigh_patches
from .image_index import ArchiveImages, ImageEmbedder, ImageIndex, ImageRecord, find_index, iterate_images
from .reference_cache import ReferenceCache, digest_texts

__all__ = [
    "ArchiveImages",
    "ImageEmbedder",
    "ImageIndex",
    "ImageRecord",
    "ReferenceCache",
    "digest_texts",
    "find_index",
    "find_seeds",
    "iterate_images",
    "make_reference",
    "weigh_patches",
]
