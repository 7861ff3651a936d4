"""The loss heads, see tcl/losses.py, under the path that custom heads import."""

from .tcl.losses import *  # noqa: F403
