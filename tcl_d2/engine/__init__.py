"""Training: the Trainer, its optimizer and its hooks."""

from ..runs.processes import argument_parser, launch
from .trainer import Trainer

__all__ = ["Trainer", "argument_parser", "launch"]
