"""Exported models at work: whole images on ONNX Runtime, with numpy and PIL, without torch and Detectron2."""

from .segmentor import OnnxSegmentor

__all__ = ["OnnxSegmentor"]
