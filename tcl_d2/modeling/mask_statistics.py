"""The statistics of masks, see tcl/mask_statistics.py, under the path that other projects import."""

from .tcl.mask_statistics import *  # noqa: F403
