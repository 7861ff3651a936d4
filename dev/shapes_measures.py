#!/usr/bin/env python
"""Measure the small world's models beside mIoU: where similar words count in part, and at boundaries.

python dev/shapes_measures.py --weights output/shapes/tcl/model_final.pth other/model_final.pth
"""

import argparse
import logging
from pathlib import Path

from shapes_ablations import DATA, ROOT, cell, evaluate_metrics
from tabulate import tabulate

from tcl_d2 import load_config

MEASURES = ["SoftIoU", "ConfusedPairs", "BoundaryIoU", "ClassBoundaryIoU"]
METRICS = ("mIoU", "soft_mIoU", "pACC", "soft_pACC", "boundary_mIoU", "class_boundary_mIoU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True, help="checkpoints of TCL, such as of several seeds")
    parser.add_argument("--output", type=Path, default=Path("output/shapes/measures"))
    args = parser.parse_args()
    for name in ("detectron2", "tcl_d2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)

    # The baseline and TCL, each without and with PAMR
    models = [("dense CLIP", "maskclip", [""]), ("TCL", "tcl", args.weights)]
    rows = []
    for title, config, weights in models:
        for refiner in ("none", "pamr"):
            runs = []
            for seed, path in enumerate(weights):
                folder = args.output / f"{config}_{refiner}_{seed}"
                options = ["TEST.ZERO_SHOT.MEASURES", MEASURES, "TEST.ZERO_SHOT.REFINE", refiner]
                options += ["MODEL.WEIGHTS", path, "OUTPUT_DIR", folder]
                runs.append(evaluate_metrics(load_config(ROOT / f"configs/shapes/{config}.yaml", options), seed))
            for data in DATA:
                values = [cell([run[data][metric] for run in runs]) for metric in METRICS]
                rows.append((title, refiner, data, *values))

    print(tabulate(rows, ("%", "refiner", "", *METRICS), "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
