#!/usr/bin/env python
"""Compare ReCo with its parts on the small world: three samples of the archive.

The background's score is the best of a few on the validation images themselves, with the first sample; it counts for
shapes_val alone. The dense CLIP has nothing random, and the score of its configuration.

    python dev/shapes_reco.py
"""

import argparse
import logging
import random
from pathlib import Path

from detectron2.modeling import build_model
from shapes_ablations import DATA, ROOT, cell, evaluate
from tabulate import tabulate

from tcl_d2 import load_config
from tcl_d2.data.archive import index_archive, list_archive
from tcl_d2.modeling.reco.index import ImageEmbedder

CONFIG = ROOT / "configs/shapes/reco.yaml"
VARIANTS = {
    "reference alone": ["MODEL.RECO.DENSE_CLIP", False],
    "ReCo": [],
    "ReCo without context elimination": ["MODEL.RECO.CONTEXT", []],
    "ReCo without language guidance": ["MODEL.RECO.TEXT_ATTENTION", False],
}
BACKGROUND_SCORES = (0.4, 0.5, 0.54, 0.56, 0.58, 0.6, 0.62, 0.65, 0.68, 0.71)


def make_index(seed: int, num_shards: int, output: Path) -> Path:
    """Make the index of a sample of the training shards, unless it is there; return its folder."""
    shards = random.Random(seed).sample(list_archive("shapes_train"), num_shards)
    folder = output / f"index_{seed}"
    model = build_model(load_config(CONFIG, ["MODEL.META_ARCHITECTURE", "MaskCLIP"])).eval()
    index_archive(shards, folder, ImageEmbedder(model))
    return folder


def choose_background(options: list) -> float:
    """Return the background's score that is best for shapes_val."""
    results = {}
    for score in BACKGROUND_SCORES:
        choice = ["TEST.ZERO_SHOT.BACKGROUND_SCORE", score, "DATASETS.TEST", "('shapes_val',)"]
        (results[score],) = evaluate(load_config(CONFIG, [*options, *choice]), 0).values()
    return max(results, key=results.get)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="samples of the archive")
    parser.add_argument("--shards", type=int, default=6, help="training shards in a sample, of 1,000 scenes each")
    parser.add_argument("--output", type=Path, default=Path("output/shapes/reco"))
    args = parser.parse_args()
    for name in ("detectron2", "tcl_d2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    indices = [make_index(seed, args.shards, args.output) for seed in range(args.seeds)]

    # The dense CLIP
    options = ["TEST.ZERO_SHOT.REFINE", "none", "OUTPUT_DIR", args.output / "evaluation"]
    results = {"dense CLIP": [evaluate(load_config(ROOT / "configs/shapes/maskclip.yaml", options), 0)]}

    # ReCo and its parts; references are kept for all of them
    options += ["MODEL.RECO.CACHE", args.output / "references"]
    for name, changes in VARIANTS.items():
        score = choose_background([*options, *changes, "MODEL.RECO.INDEX", indices[0]])
        changes = [*options, *changes, "TEST.ZERO_SHOT.BACKGROUND_SCORE", score]
        cfgs = [load_config(CONFIG, [*changes, "MODEL.RECO.INDEX", index]) for index in indices]
        results[f"{name} (background {score})"] = [evaluate(cfg, 0) for cfg in cfgs]
    print(f"\nmIoU (%), {args.seeds} samples of {1000 * args.shards} scenes:\n")
    rows = [(name, *(cell([run[data] for run in runs]) for data in DATA)) for name, runs in results.items()]
    print(tabulate(rows, ("", *DATA), "pipe"))


if __name__ == "__main__":
    main()
