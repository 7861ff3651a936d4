"""Bring ADE20K's 150-class validation set into $DETECTRON2_DATASETS/ADEChallengeData2016, for zeroshot_ade20k_val."""

import argparse

from ...data import preparation
from ...data.dataset_files import datasets_root
from ..options.prepare.releases import ADE20K
from .preparation import Preparation


def prepare(args: argparse.Namespace) -> None:
    """Put the validation set into place."""
    pattern = r"ADEChallengeData2016/(?P<path>(images/validation/[^/]+\.jpg|annotations/validation/[^/]+\.png))"
    preparation.bring(args.source, pattern, datasets_root() / "ADEChallengeData2016")


PREPARATION = Preparation(ADE20K, prepare)
