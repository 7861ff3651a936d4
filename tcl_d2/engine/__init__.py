"""Training: the Trainer, its optimizer and its hooks."""

from ..runs.options import argument_parser
from ..runs.processes import launch
from .trainer import Trainer

__all__ = ["Trainer", "argument_parser", "launch"]
