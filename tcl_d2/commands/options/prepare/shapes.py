"""Draw the small world into $DETECTRON2_DATASETS/shapes, in the formats of the real datasets.

    train/00000.tar ...   webdataset shards of image (jpg) + caption (txt), with img2dataset's *_stats.json
    labeled/images, labeled/labels   the first of these scenes (png) and their label maps, to learn from a few masks
    val/images, val/labels   larger scenes (png) and their label maps, for the three benchmarks
    val/instances.json, val/panoptic, val/panoptic.json   their objects, in COCO's formats
    world.json   what it was drawn with; written last, so that it stands for a whole world

Can be repeated and interrupted: what is there is kept, unless it was drawn with other numbers.

    tcl-d2 prepare shapes
"""

import argparse
import os
from pathlib import Path


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="default: $DETECTRON2_DATASETS/shapes")
    parser.add_argument("--train", type=int, default=20_000, help="image-caption pairs")
    parser.add_argument("--labeled", type=int, default=512, help="training scenes with labels")
    parser.add_argument("--val", type=int, default=100, help="images with labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser
