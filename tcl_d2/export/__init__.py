"""Exporting models: their graphs as ONNX or by torch.export, and what tcl_d2.deploy needs to know of them."""

from .crops import CropLabels, CropScores, check_exportable
from .files import save_embeddings, save_onnx, save_program
from .pamr import ExportablePAMR

__all__ = [
    "CropLabels",
    "CropScores",
    "ExportablePAMR",
    "check_exportable",
    "save_embeddings",
    "save_onnx",
    "save_program",
]
