"""Train and evaluate TCL.

tcl-d2 train --config-file tcl.yaml --num-gpus 8
tcl-d2 train --config-file shapes/tcl.yaml --resume SOLVER.BASE_LR 0.001
tcl-d2 evaluate --config-file shapes/trained.yaml
"""

import argparse

from ...runs.options import argument_parser as run_parser


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    return run_parser(epilog=__doc__)
