"""Configuration: every key with its default and range, loading, and checks."""

from .checks import check_device, check_meta_architecture, num_devices
from .keys import add_tcl_config, check_ranges, missing_keys, tcl_keys
from .loading import dataset_config, dense_head_config, find_config_file, load_config, merge_options

__all__ = [
    "add_tcl_config",
    "check_device",
    "check_meta_architecture",
    "check_ranges",
    "dataset_config",
    "dense_head_config",
    "find_config_file",
    "load_config",
    "merge_options",
    "missing_keys",
    "num_devices",
    "tcl_keys",
]
