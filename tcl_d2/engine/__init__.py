"""Training: the Trainer, its optimiser and its hooks."""

from .trainer import Trainer

__all__ = ["Trainer"]
