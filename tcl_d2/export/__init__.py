"""Exporting models: their graphs as ONNX or by torch.export, with the cards that tcl_d2.deploy reads."""

from .cards import embed_vocabulary, make_card
from .crops import CropLabels, CropScores, check_exportable
from .files import add_checksums, make_program, save_embeddings, save_onnx, save_program

__all__ = [
    "CropLabels",
    "CropScores",
    "add_checksums",
    "check_exportable",
    "embed_vocabulary",
    "make_card",
    "make_program",
    "save_embeddings",
    "save_onnx",
    "save_program",
]
