"""Make the index of an image archive: CLIP's embedding of each image, from which ReCo retrieves.

ARCHIVE is a folder of images, shards, or a registered dataset, whose captions are not read. After Ctrl-C, the same
command goes on where it stopped.

    tcl-d2 index datasets/imagenet/train --config-file reco/reco.yaml --output output/imagenet_index
    tcl-d2 index shapes_train --config-file shapes/reco.yaml
    tcl-d2 index 'laion/{00000..00331}.tar' --config-file reco/reco.yaml --output /shared/index --ray 10.0.0.1:6379
"""

import argparse
import os
from pathlib import Path

from ...utils.imports import add_import_argument
from .ray import add_ray_options


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="folder of images, shards (braces and globs), or a registered dataset")
    parser.add_argument(
        "--config-file", default="shapes/reco.yaml", help="config whose CLIP to use; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, help="folder for the index; default: the config's MODEL.RECO.INDEX")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images")
    add_ray_options(parser)
    add_import_argument(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")
    return parser
