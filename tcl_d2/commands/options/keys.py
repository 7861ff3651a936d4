"""List the config keys of TCL and of code of yours: value, range and meaning.

tcl-d2 keys ZERO_SHOT
tcl-d2 keys LOSS_WEIGHT --import my_loss.py --config-file my.yaml
"""

import argparse

from ...utils.imports import add_import_argument


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="", help="of the keys' names; default: all keys")
    parser.add_argument("--config-file", help="a config, whose values are shown; default: the plugin's defaults")
    add_import_argument(parser)
    return parser
