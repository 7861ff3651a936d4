"""Bring ADE20K's 150-class validation set into $DETECTRON2_DATASETS/ADEChallengeData2016, for zeroshot_ade20k_val.

Can be repeated and interrupted.

    tcl-d2 prepare ade20k --source ~/ADEChallengeData2016.zip
    tcl-d2 prepare ade20k --check
"""

import argparse

from ...data import preparation
from ...data.dataset_files import datasets_root


def prepare(args: argparse.Namespace) -> None:
    """Put the validation set into place."""
    pattern = r"ADEChallengeData2016/(?P<path>(images/validation/[^/]+\.jpg|annotations/validation/[^/]+\.png))"
    preparation.bring(args.source, pattern, datasets_root() / "ADEChallengeData2016")


PREPARATION = preparation.Preparation(
    __doc__,
    prepare,
    benchmarks=("zeroshot_ade20k_val",),
    downloads=("ADEChallengeData2016.zip",),
    page="http://sceneparsing.csail.mit.edu",
)
