"""Training: the Trainer, its optimizer and its hooks."""

from ..runs.output_folder import output_folder
from ..runs.processes import argument_parser, launch
from .trainer import Trainer

__all__ = ["Trainer", "argument_parser", "launch", "output_folder"]
