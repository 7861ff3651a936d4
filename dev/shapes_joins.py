#!/usr/bin/env python
"""Evaluate every method with every refiner on the small world: one table.

The methods are the dense heads, TCL, and TCL with each head for knowledge preservation; every one alone and with each
refiner. All else is as the configs have it, also the background's score, which counts for shapes_val alone. The vision
model of ProxyCLIP and LPOSS is untrained, for there is none for such scenes; CLIP-DINOiser's convolutions are random,
and evaluated with three seeds. Votes of regions are of superpixels, by k-means over place and color. Results are kept
in the output folder: a stopped run goes on.

    python dev/shapes_joins.py
    python dev/shapes_joins.py --more reco.yaml talk2dino.yaml=output/shapes/talk2dino/model_final.pth
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image
from shapes_ablations import DATA, ROOT, cell, evaluate
from tabulate import tabulate
from tqdm import tqdm

from tcl_d2 import load_config
from tcl_d2.utils.files import replacing

HEADS = ("clip", "maskclip", "sclip", "clearclip", "naclip", "proxyclip", "clip_dinoiser")
RANDOM = "clip_dinoiser"
SUPERPIXELS = 24  # of an image
UNTRAINED = ["MODEL.DENSE_CLIP.PROXY.NAME", "vit_small_patch8_224.dino", "MODEL.DENSE_CLIP.PROXY.PRETRAINED", ""]
UNTRAINED += ["MODEL.DENSE_CLIP.DINOISER.WEIGHTS", "", "TEST.ZERO_SHOT.LPOSS.NAME", "vit_small_patch8_224.dino"]
UNTRAINED += ["TEST.ZERO_SHOT.LPOSS.PRETRAINED", "", "TEST.ZERO_SHOT.LPOSS.NEIGHBORS", 20]
UNTRAINED += ["TEST.ZERO_SHOT.LPOSS.SIGMA", 8.0]


class Method(NamedTuple):
    """A method: its name, KEY, VALUE pairs, and whether it has random weights."""

    name: str
    options: tuple
    is_random: bool


def methods(more: Sequence[str]) -> Iterator[tuple[str, Method]]:
    """Yield each method with the config below configs/shapes that it is of; `more` as the option says."""
    for head in HEADS:
        yield "dense_clip.yaml", Method(head, ("MODEL.DENSE_CLIP.HEAD", head), head == RANDOM)
    for head in HEADS:
        name = "TCL" if head == "maskclip" else f"TCL, KP by {head}"
        yield "trained.yaml", Method(name, ("MODEL.TCL.KP_HEAD", head), head == RANDOM)
    for config, _, weights in (text.partition("=") for text in more):
        yield config, Method(Path(config).stem, ("MODEL.WEIGHTS", weights), False)


def refiners(regions: Path) -> dict[str, tuple]:
    """Return KEY, VALUE pairs by name of a refiner, and of votes of regions."""
    names = ("none", "pamr", "densecrf", "lposs_pixels", "lposs", "lposs_plus")
    choices = {name: ("TEST.ZERO_SHOT.REFINE", name) for name in names}
    return {**choices, "regions": (*choices["none"], "TEST.ZERO_SHOT.REGIONS.FOLDER", regions)}


def write_regions(folder: Path) -> None:
    """Write superpixels of the validation images, unless they are there."""
    for row in DatasetCatalog.get(DATA[0]):
        path = folder / f"{Path(row['file_name']).stem}.png"
        if path.exists():
            continue

        # Place and color in pixels and 0..255: a superpixel is about 20 pixels wide
        image = np.asarray(Image.open(row["file_name"]).convert("RGB"), np.float32)
        y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
        points = np.concatenate([image / 4, 2 * y[..., None], 2 * x[..., None]], axis=2).reshape(-1, 5)
        cv2.setRNGSeed(0)
        criteria = (cv2.TERM_CRITERIA_MAX_ITER, 20, 0)
        _, labels, _ = cv2.kmeans(points, SUPERPIXELS, None, criteria, 1, cv2.KMEANS_PP_CENTERS)
        with replacing(path) as unfinished:
            Image.fromarray((1 + labels).reshape(image.shape[:2]).astype(np.uint8)).save(unfinished, "PNG")


def run(config: str, options: list, seed: int, path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return the mIoU (%) on each benchmark; it is kept in a file."""
    if path.exists():
        return json.loads(path.read_text())

    few = ["TEST.ZERO_SHOT.MAX_IMAGES", args.images, "OUTPUT_DIR", args.output / "evaluation"]
    results = evaluate(load_config(ROOT / "configs/shapes" / config, [*UNTRAINED, *options, *few]), seed)
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(results))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=0, help="validation images, spread evenly; 0 for all")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="some of them alone, by their names in the table")
    more = "further configs below configs/shapes, each with the weights of a training, or without: reco.yaml"
    parser.add_argument("--more", nargs="+", default=[], metavar="CONFIG=WEIGHTS", help=more)
    parser.add_argument("--output", type=Path, default=Path("output/shapes/joins"))
    args = parser.parse_args()
    for name in ("detectron2", "tcl_d2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    write_regions(args.output / "regions")

    # Evaluate
    choices = [method for method in methods(args.more) if not args.methods or method[1].name in args.methods]
    rows = []
    for (config, method), (refiner, options) in tqdm(list(product(choices, refiners(args.output / "regions").items()))):
        results = []
        for seed in range(3 if method.is_random else 1):
            path = args.output / f"{method.name}, {refiner}, {seed}, {args.images} images.json"
            results.append(run(config, [*method.options, *options], seed, path, args))
        rows.append((method.name, refiner, *(cell([result[data] for result in results]) for data in DATA)))
    print(tabulate(rows, ("method", "refiner", *DATA), "pipe"))


if __name__ == "__main__":
    main()
