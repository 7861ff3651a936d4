#!/usr/bin/env python
"""Evaluate every method with every refiner on the small world: one table.

The methods are the dense heads, TCL, and TCL with each head for knowledge preservation; every one alone and with each
refiner. All else is as the configs have it, also the background's score, which counts for shapes_val alone. The vision
model of ProxyCLIP and LPOSS is untrained, for there is none for such scenes; CLIP-DINOiser's convolutions are random,
and evaluated with three seeds. Votes of regions are of superpixels, by k-means over place and color. Results are kept
in the output folder by a digest of their settings: a stopped run goes on.

    python dev/shapes_joins.py
    python dev/shapes_joins.py --more reco.yaml talk2dino.yaml=output/shapes/talk2dino/model_final.pth
    python dev/shapes_joins.py --methods clip sclip --refiners none --backgrounds 0.7 0.8 0.9
    python dev/shapes_joins.py --methods TCL --refiners pamr --weights first/model_final.pth second/model_final.pth
"""

import argparse
import hashlib
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
REFINERS = ("none", "pamr", "densecrf", "lposs_pixels", "lposs", "lposs_plus", "regions")
SUPERPIXELS = 24  # of an image
UNTRAINED = ["MODEL.DENSE_CLIP.PROXY.NAME", "vit_small_patch8_224.dino", "MODEL.DENSE_CLIP.PROXY.PRETRAINED", ""]
UNTRAINED += ["MODEL.DENSE_CLIP.DINOISER.WEIGHTS", "", "TEST.ZERO_SHOT.LPOSS.NAME", "vit_small_patch8_224.dino"]
UNTRAINED += ["TEST.ZERO_SHOT.LPOSS.PRETRAINED", "", "TEST.ZERO_SHOT.LPOSS.NEIGHBORS", 20]
UNTRAINED += ["TEST.ZERO_SHOT.LPOSS.SIGMA", 8.0]


class Method(NamedTuple):
    """A method: its name, its config below configs/shapes, and KEY, VALUE pairs of each of its runs."""

    name: str
    config: str
    runs: list[tuple]


def methods(weights: Sequence[str], more: Sequence[str]) -> Iterator[Method]:
    """Yield all methods; `weights` and `more` as the options of these names say."""
    for head in HEADS:
        yield Method(head, "dense_clip.yaml", [("MODEL.DENSE_CLIP.HEAD", head)] * (3 if head == RANDOM else 1))
    for head in HEADS:
        name = "TCL" if head == "maskclip" else f"TCL, KP by {head}"
        trainings = [*weights] * (3 if head == RANDOM and len(weights) == 1 else 1)
        runs = [("MODEL.TCL.KP_HEAD", head, "MODEL.WEIGHTS", path) for path in trainings]
        yield Method(name, "trained.yaml", runs)
    for config, _, path in (text.partition("=") for text in more):
        yield Method(Path(config).stem, config, [("MODEL.WEIGHTS", path)])


def refiners(regions: Path) -> dict[str, tuple]:
    """Return KEY, VALUE pairs by name of a refiner, and of votes of regions."""
    choices = {name: ("TEST.ZERO_SHOT.REFINE", name) for name in REFINERS[:-1]}
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


def run(config: str, options: Sequence, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Return the mIoU (%) on each benchmark; it is kept in a file."""
    options = ["TEST.ZERO_SHOT.MAX_IMAGES", args.images, *options]
    digest = hashlib.blake2b(repr((config, options, seed)).encode(), digest_size=8).hexdigest()
    path = args.output / f"{digest}.json"
    if path.exists():
        return json.loads(path.read_text())

    options = [*UNTRAINED, *options, "OUTPUT_DIR", args.output / "evaluation"]
    results = evaluate(load_config(ROOT / "configs/shapes" / config, options), seed)
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(results))
    return results


def choose_background(config: str, options: Sequence, args: argparse.Namespace) -> tuple:
    """Return the background's score that is best for shapes_val, as KEY, VALUE; nothing if there is no choice."""
    results = {}
    for score in args.backgrounds:
        choice = "TEST.ZERO_SHOT.BACKGROUND_SCORE", score
        results[choice] = run(config, [*options, *choice, "DATASETS.TEST", "('shapes_val',)"], 0, args)["shapes_val"]
    return max(results, key=results.get, default=())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=0, help="validation images, spread evenly; 0 for all")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="some of them alone, by their names in the table")
    parser.add_argument("--refiners", nargs="+", choices=REFINERS, default=REFINERS, help="some of them alone")
    backgrounds = "the background's score of each row is the best of these on the validation images themselves"
    parser.add_argument("--backgrounds", nargs="+", type=float, default=[], metavar="SCORE", help=backgrounds)
    shipped = ["tcl_d2://shapes_tcl/weights.safetensors"]
    parser.add_argument("--weights", nargs="+", default=shipped, help="checkpoints of TCL, such as of several seeds")
    more = "further configs below configs/shapes, each with the weights of a training, or without: reco.yaml"
    parser.add_argument("--more", nargs="+", default=[], metavar="CONFIG=WEIGHTS", help=more)
    parser.add_argument("--output", type=Path, default=Path("output/shapes/joins"))
    args = parser.parse_args()
    for name in ("detectron2", "tcl_d2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    write_regions(args.output / "regions")

    # Choose
    chosen = [method for method in methods(args.weights, args.more) if not args.methods or method.name in args.methods]
    choices = refiners(args.output / "regions")
    choices = {name: choices[name] for name in args.refiners}

    # Evaluate
    titles = ("method", "refiner", *DATA, *(["background"] if args.backgrounds else []))
    rows = []
    for method, (refiner, options) in tqdm(list(product(chosen, choices.items()))):
        background = choose_background(method.config, [*method.runs[0], *options], args)
        runs = [[*own, *options, *background] for own in method.runs]
        results = [run(method.config, options, seed, args) for seed, options in enumerate(runs)]
        row = (method.name, refiner, *(cell([result[data] for result in results]) for data in DATA))
        rows.append((*row, *background[1:]))
    print(tabulate(rows, titles, "pipe"))


if __name__ == "__main__":
    main()
