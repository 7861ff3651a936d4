"""Make the features of DATASETS.TRAIN, images and captions, from which Talk2DINO's projection is trained.

They go to MODEL.TALK2DINO.FEATURES. After Ctrl-C, the same command goes on where it stopped.

    tcl-d2 features --config-file talk2dino/train_vitb.yaml --num-gpus 4
    tcl-d2 features --config-file talk2dino/train_vitb.yaml --ray 10.0.0.1:6379 --ray-gpus 0.5
    tcl-d2 features --config-file shapes/talk2dino.yaml --half MODEL.TALK2DINO.FEATURES output/features
"""

import argparse
import os

from ...runs.options import argument_parser as run_parser
from .ray import add_ray_options


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = run_parser(epilog=__doc__)
    parser.add_argument("--half", action="store_true", help="write fp16, half as large")
    add_ray_options(parser)
    threads = min(8, os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=threads, help="threads of each process that read images")
    return parser
