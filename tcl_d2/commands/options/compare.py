"""Compare configurations on benchmarks: one table and one figure of measured and published mIoU, time and memory.

tcl-d2 compare --configs configs/shapes/maskclip.yaml configs/shapes/trained.yaml --datasets shapes_val
tcl-d2 compare --configs A.yaml B.yaml --opts TEST.ZERO_SHOT.MAX_IMAGES 100

Configurations on one CLIP, with the same images and windows, are evaluated in one pass over the images, see
`evaluate_together`; the groups follow each other. Ctrl-C saves what is done, and the same command goes on from there.
"""

import argparse
from pathlib import Path


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", required=True, help="config files, no two of one name")
    parser.add_argument("--datasets", nargs="+", help="benchmarks, or folders that are; default: the first config's")
    parser.add_argument("--output", type=Path, default=Path("output/compare"), help="folder")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over each config's, last")
    return parser
