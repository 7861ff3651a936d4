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


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    downloads = ("ADEChallengeData2016.zip",)
    return preparation.arguments(__doc__, downloads, "http://sceneparsing.csail.mit.edu")


def main(args: argparse.Namespace) -> None:
    """Prepare the dataset, or check it alone; exit with 1 if it is not whole.

    Args:
        args: of `argument_parser`.
    """
    preparation.run(args, prepare, ("zeroshot_ade20k_val",))
