#!/usr/bin/env python
"""Compare the dense heads on the small world: alone, and as TCL's partner in knowledge preservation.

The background's score is the best for each head of a few, on the validation images themselves; it counts for shapes_val
alone. TCL's is the paper's. ProxyCLIP's vision model is untrained.

    python dev/shapes_heads.py --weights output/shapes/tcl/model_final.pth other/model_final.pth
"""

import argparse
import logging
from pathlib import Path

from shapes_ablations import DATA, ROOT, cell, evaluate
from tabulate import tabulate

from tcl_d2 import load_config

HEADS = ("clip", "maskclip", "sclip", "clearclip", "naclip", "proxyclip")
BACKGROUND_SCORES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


def evaluate_head(head: str, output: Path) -> tuple[dict[str, float], float]:
    """Return the results of a head alone, and the background's score."""
    options = ["MODEL.DENSE_CLIP.HEAD", head, "OUTPUT_DIR", output]

    # Choose the background's score
    best, best_score = -1.0, 0.0
    for score in BACKGROUND_SCORES:
        choice = ["TEST.ZERO_SHOT.BACKGROUND_SCORE", score, "DATASETS.TEST", "('shapes_val',)"]
        (miou,) = evaluate(load_config(ROOT / "configs/shapes/dense_clip.yaml", [*options, *choice]), 0).values()
        if miou > best:
            best, best_score = miou, score

    options += ["TEST.ZERO_SHOT.BACKGROUND_SCORE", best_score]
    return evaluate(load_config(ROOT / "configs/shapes/dense_clip.yaml", options), 0), best_score


def evaluate_tcl(head: str, weights: str, seed: int, output: Path) -> dict[str, float]:
    """Return the results of TCL, with PAMR and the masks of a head for knowledge preservation."""
    options = ["MODEL.TCL.KP_HEAD", head, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", output]
    options += ["MODEL.DENSE_CLIP.PROXY.NAME", "vit_small_patch8_224.dino", "MODEL.DENSE_CLIP.PROXY.PRETRAINED", ""]
    return evaluate(load_config(ROOT / "configs/shapes/tcl.yaml", options), seed)


def print_table(title: str, results: dict[str, list[dict[str, float]]]) -> None:
    rows = [(name, *(cell([run[data] for run in runs]) for data in DATA)) for name, runs in results.items()]
    print(f"\n{title}\n")
    print(tabulate(rows, ("", *DATA), "pipe"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        nargs="*",
        default=["tcl_d2://shapes_tcl/weights.safetensors"],
        help="checkpoints of TCL, such as of several seeds; none to leave TCL out",
    )
    parser.add_argument("--heads", nargs="+", default=HEADS)
    parser.add_argument("--output", type=Path, default=Path("output/shapes/heads"))
    args = parser.parse_args()
    for name in ("detectron2", "tcl_d2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)

    # Heads alone
    results = {}
    for head in args.heads:
        run, score = evaluate_head(head, args.output / head)
        results[f"{head} (background {score})"] = [run]
    print_table("mIoU (%) of dense CLIPs, without PAMR:", results)

    # As TCL's partner
    if not args.weights:
        return
    results = {}
    for head in args.heads:
        runs = [evaluate_tcl(head, path, seed, args.output / f"tcl_{head}") for seed, path in enumerate(args.weights)]
        results[f"TCL + PAMR, KP by {head}"] = runs
    print_table(f"mIoU (%) of TCL, {len(args.weights)} trainings:", results)


if __name__ == "__main__":
    main()
