"""Checkpoints: reading and writing ours, the official TCL release's layout, and what a checkpoint says of itself."""

from .checkpointer import TCLCheckpointer, read_checkpoint
from .official import from_official, to_official

__all__ = ["TCLCheckpointer", "from_official", "read_checkpoint", "to_official"]
