"""Checkpoints: reading and writing ours, the official TCL release's layout, and what a checkpoint says of itself."""

from .card import carried_activation, carried_config, make_card
from .checkpointer import TCLCheckpointer, fetch_weights, read_checkpoint, warn_if_untrained
from .official import from_official, is_official, to_official

__all__ = [
    "TCLCheckpointer",
    "carried_activation",
    "carried_config",
    "fetch_weights",
    "from_official",
    "is_official",
    "make_card",
    "read_checkpoint",
    "to_official",
    "warn_if_untrained",
]
