"""List the config keys of TCL and of code of yours: value, range and meaning.

tcl-d2 keys ZERO_SHOT
tcl-d2 keys LOSS_WEIGHT --import my_loss.py --config-file my.yaml
"""

import argparse

from ..config import load_config
from ..config.meanings import describe_keys
from ..utils.errors import one_message
from ..utils.imports import add_import_argument, import_code


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="", help="of the keys' names; default: all keys")
    parser.add_argument("--config-file", help="a config, whose values are shown; default: the plugin's defaults")
    add_import_argument(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Print a paragraph for each key."""
    with one_message():
        for name in args.imports:
            import_code(name)
        paragraphs = list(describe_keys(load_config(args.config_file), args.part))
        if not paragraphs:
            raise ValueError(f"no key has '{args.part}' in its name: `tcl-d2 keys` lists all")
    print("\n\n".join(paragraphs))
