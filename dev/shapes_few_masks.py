#!/usr/bin/env python
"""Show on the small world how TCL learns from a few masks, and whether words that no label names stay open.

All trainings go on from the model that was trained on captions alone. Labels are of the base classes; pixels of the
novel classes are ignored. Labels are given alone, and with captions beside. Evaluations are without PAMR. It writes
few_masks.md and few_masks.png below --output. Trainings that are complete are not repeated, and a stopped one goes on
from its last checkpoint.

    python dev/shapes_few_masks.py --jobs 2
"""

import json
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.modeling import build_model
from matplotlib.figure import Figure
from shapes_ablations import ROOT, WITHOUT_PAMR, argument_parser, cell, train_all
from tabulate import tabulate

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.data.shapes import GROUNDS, NOVEL, OBJECTS
from tcl_d2.engine import Trainer
from tcl_d2.utils.files import replacing

COUNTS = (0, 8, 32, 128, 512)  # labeled scenes
NUM_LABELED = 512  # that datasets/prepare_shapes.py draws
DATA = "shapes_stuff_val"
BASE = tuple(name for name in OBJECTS + GROUNDS if name not in NOVEL)
GROUPS = {"base classes (labeled)": BASE, "novel classes (held out)": NOVEL}
WAYS = ("labels and captions", "labels alone")


def recipe(way: str, count: int) -> tuple[str, list[str]] | None:
    """Return the config below configs/shapes of a training and KEY, VALUE pairs over it; None where nothing trains."""
    common = ["MODEL.TCL.UNFREEZE_ITER", "0", "SOLVER.WARMUP_ITERS", "5", "DATALOADER.NUM_WORKERS", "0"]
    if count == 0 and way == "labels alone":
        return None
    if count == 0:
        return "semi_supervised.yaml", [
            *("DATASETS.TRAIN", "('shapes_train',)", "DATALOADER.LABELED_RATIO", "0"),
            *("MODEL.TCL.EXTRA_LOSS_HEADS", "[]", *common),
        ]

    labels = ["DATALOADER.RANDOM_SUBSET_RATIO", str(count / NUM_LABELED)]
    if way == "labels alone":
        return "finetune.yaml", ["DATASETS.TRAIN", "('shapes_base_sem_seg_train',)", *labels, *common]
    return "semi_supervised.yaml", ["DATASETS.TRAIN", "('shapes_train','shapes_base_sem_seg_train')", *labels, *common]


def group_means(ious: Mapping[str, float]) -> dict[str, float]:
    """Return the mean IoU of each of GROUPS from the IoU of each class; nan counts nowhere, as in mIoU."""
    return {group: float(np.nanmean([ious[name] for name in names])) for group, names in GROUPS.items()}


def read_training(folder: Path) -> dict[str, float]:
    """Return the mean IoU (%) of each of GROUPS at the end of a complete training."""
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    last = [row for row in rows if "average/mIoU" in row][-1]
    return group_means({name: last[f"{DATA}/sem_seg/IoU-{name}"] for name in OBJECTS + GROUNDS})


def evaluate_start(output: Path) -> dict[str, float]:
    """Return the mean IoU (%) of each of GROUPS of the model that all trainings begin with."""
    cfg = load_config(ROOT / "configs/shapes/semi_supervised.yaml", [*WITHOUT_PAMR, "OUTPUT_DIR", output / "start"])
    cfg.DATASETS.TEST = (DATA,)
    model = build_model(cfg).eval()
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    metrics = Trainer.test(cfg, model)[DATA]["sem_seg"]
    return group_means({name: metrics[f"IoU-{name}"] for name in OBJECTS + GROUNDS})


def measure(
    seeds: Sequence[int], iterations: int, output: Path, jobs: int
) -> dict[tuple[str, int], list[dict[str, float]]]:
    """Train and evaluate all; return by way and number of labeled scenes, the means of each seed."""
    recipes = {(way, count): recipe(way, count) for way in WAYS for count in COUNTS}
    folders = {key: f"{key[0].replace(' ', '_')}_{key[1]}" for key in recipes}
    trained = {folders[key]: value for key, value in recipes.items() if value is not None}
    train_all(trained, seeds, iterations, output, jobs)

    start = evaluate_start(output)
    results = {}
    for key, value in recipes.items():
        trainings = [output / folders[key] / f"{iterations}_{seed}" for seed in seeds]
        results[key] = [start] if value is None else [read_training(folder) for folder in trainings]
    return results


def table_rows(results: Mapping[tuple[str, int], list[dict[str, float]]]) -> Iterator[tuple]:
    """Yield the row of each number of labeled scenes: for each way the mean of each group, with its deviation."""
    for count in COUNTS:
        yield count, *(cell([run[group] for run in results[way, count]]) for way in WAYS for group in GROUPS)


def draw(results: Mapping[tuple[str, int], list[dict[str, float]]], path: Path) -> None:
    """Draw mIoU over the number of labeled scenes: a panel for each group, a line for each way."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    places = range(len(COUNTS))
    for axis, group in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS):
        for way in WAYS:
            runs = [[run[group] for run in results[way, count]] for count in COUNTS]
            means = [statistics.mean(values) for values in runs]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0 for values in runs]
            axis.errorbar(places, means, spreads, marker="o", capsize=3, label=way)
        axis.set_xticks(places, COUNTS)
        axis.set_xlabel("labeled scenes")
        axis.set_title(group, fontsize=10)
        axis.grid(alpha=0.3)

    figure.axes[0].set_ylabel("mIoU, %")
    figure.axes[0].legend(fontsize=8)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(iterations=100, output=Path("output/shapes/few_masks"))
    args = parser.parse_args()
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    output = args.output.resolve()
    results = measure(args.seeds, args.iterations, output, args.jobs)

    # Write the table and the figure
    titles = ("labeled scenes", *(f"{way}: {group}" for way in WAYS for group in GROUPS))
    table = tabulate(list(table_rows(results)), titles, "pipe", disable_numparse=True)
    with replacing(output / "few_masks.md") as unfinished:
        unfinished.write_text(table + "\n")
    draw(results, output / "few_masks.png")
    print(f"\nmIoU (%) on {DATA} after {args.iterations} iterations, seeds {args.seeds}:\n\n{table}")
    print(f"\n{output / 'few_masks.md'}, {output / 'few_masks.png'}")


if __name__ == "__main__":
    main()
