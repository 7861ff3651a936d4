"""ReCo (Shin et al., NeurIPS 2022): the segmentor, the index of an archive, co-segmentation, and its cache."""

from .index import ImageEmbedder, ImageIndex
from .model import ReCo

__all__ = ["ImageEmbedder", "ImageIndex", "ReCo"]
