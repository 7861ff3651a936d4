"""Configuration: every key with its default and range, and loading."""

from .keys import add_key, add_tcl_config, missing_keys, tcl_keys
from .loading import dataset_config, dense_head_config, find_config_file, load_config, merge_options
from .ranges import Range, check_ranges, check_values

__all__ = [
    "Range",
    "add_key",
    "add_tcl_config",
    "check_ranges",
    "check_values",
    "dataset_config",
    "dense_head_config",
    "find_config_file",
    "load_config",
    "merge_options",
    "missing_keys",
    "tcl_keys",
]
