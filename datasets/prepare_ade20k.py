#!/usr/bin/env python
"""Brings ADE20K's 150-class validation set into $DETECTRON2_DATASETS/ADEChallengeData2016, for zeroshot_ade20k_val.

Can be repeated and interrupted.

    python datasets/prepare_ade20k.py --source ~/ADEChallengeData2016.zip
    python datasets/prepare_ade20k.py --check
"""

import argparse

from tcl_d2.data import preparation
from tcl_d2.data.benchmarks import datasets_root


def prepare(args: argparse.Namespace) -> None:
    pattern = r"ADEChallengeData2016/(?P<path>(images/validation/[^/]+\.jpg|annotations/validation/[^/]+\.png))"
    preparation.bring(args.source, pattern, datasets_root() / "ADEChallengeData2016")


if __name__ == "__main__":
    args = preparation.arguments(__doc__, ("ADEChallengeData2016.zip",)).parse_args()
    preparation.run(args, prepare, ("zeroshot_ade20k_val",))
