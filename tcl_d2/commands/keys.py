"""List config keys."""

import argparse

from ..config import load_config
from ..config.meanings import describe_keys
from ..utils.errors import one_message


def main(args: argparse.Namespace) -> None:
    """Print a paragraph for each key."""
    with one_message():
        paragraphs = list(describe_keys(load_config(args.config_file, imports=args.imports), args.part))
        if not paragraphs:
            raise ValueError(f"no key has '{args.part}' in its name: `tcl-d2 keys` lists all")
    print("\n\n".join(paragraphs))
