"""Evaluate a released model on PASCAL VOC 2012, and compare its mIoU with the published one (docs/reproduce.md).

The model and the dataset are downloaded unless they are there.

tcl-d2 reproduce tcl
tcl-d2 reproduce groupvit --resume MODEL.DEVICE cpu
"""

import argparse

from ...runs.options import argument_parser as run_parser


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = run_parser(epilog=__doc__)
    parser.set_defaults(eval_only=True)
    return parser
