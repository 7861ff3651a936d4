"""Draw COCO's instance annotations as label maps to train on: a folder that DATASETS.TRAIN takes.

The folder gets links to the images, the label maps, and classes.txt, to whose lines further words may be added after
commas. Can be repeated and interrupted.

    tcl-d2 prepare labels instances_train.json --images train --output my/labeled
    tcl-d2 train ... DATASETS.TRAIN '("my/labeled",)'

Pixels of no instance are the background, which is no word. Where only some of the objects were annotated, ignore them:

    tcl-d2 prepare labels instances_train.json --images train --output my/labeled --ignore-unlabeled
"""

import argparse
import os
from pathlib import Path


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="a JSON file in COCO's format of instances")
    parser.add_argument("--images", type=Path, required=True, help="the folder of its images")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--ignore-unlabeled", action="store_true", help="ignore the pixels of no instance")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser
