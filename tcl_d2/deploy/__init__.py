"""Exported models at work: whole images on ONNX Runtime, with numpy and PIL, without torch and Detectron2."""

from .card import ModelCard, VocabularyCard
from .segmentor import OnnxSegmentor

__all__ = ["ModelCard", "OnnxSegmentor", "VocabularyCard"]
