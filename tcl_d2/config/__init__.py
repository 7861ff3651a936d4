"""Configuration: every key with its default and range, and loading."""

from .keys import add_key, add_tcl_config
from .loading import load_config, merge_options
from .ranges import Range, check_values

__all__ = ["Range", "add_key", "add_tcl_config", "check_values", "load_config", "merge_options"]
