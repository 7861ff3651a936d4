#!/usr/bin/env python
"""Repeat the paper's two ablation tables on the small world, beside the published figures: does their order hold?

Each row is trained with several seeds, and evaluated without PAMR. Runs that are complete are not repeated, and a
stopped one goes on from its last checkpoint. KEY VALUE pairs at the end go over every row's config; give such runs an
--output of their own.

    python dev/shapes_ablations.py --iterations 60 --seeds 1 2 3 --jobs 2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.engine import Trainer

ROOT = Path(__file__).resolve().parent.parent
DATA = ("shapes_val", "shapes_objects_val", "shapes_stuff_val")
LIKE_VOC20 = "shapes_objects_val"  # no background, as the published figures
WITHOUT_PAMR = ("TEST.ZERO_SHOT.REFINE", "none")


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
        letter: its name in the paper, or several of which it is one.
        name: what is trained.
        config: the file below configs/shapes.
        published: mIoU (%) on VOC20, or several of which one is this row's.
    """

    letter: str
    name: str
    config: str
    published: tuple[float, ...]


TCL = Row("C", "image + feature + area (TCL)", "tcl.yaml", (77.4,))
TABLES = {
    "(a)": (
        Row("A", "dense CLIP", "maskclip.yaml", (55.2,)),
        Row("B", "decoder without TCL", "ablations/decoder_without_tcl.yaml", (52.3,)),
        TCL,
    ),
    "(b)": (
        Row("D", "image", "ablations/image_level.yaml", (61.1,)),
        Row("E or F", "image + feature", "ablations/image_and_feature_level.yaml", (74.6, 76.0)),
        Row("E or F", "image + area", "ablations/image_level_and_area.yaml", (74.6, 76.0)),
        Row("E or F", "feature + area", "ablations/feature_level_and_area.yaml", (74.6, 76.0)),
        TCL,
        Row("G", "image + feature + area + CL", "ablations/tcl_and_whole_image.yaml", (75.6,)),
        Row("H", "CL + area", "ablations/whole_image.yaml", (67.1,)),
    ),
}


def evaluate(cfg: CfgNode, seed: int) -> dict[str, float]:
    """Return the mIoU (%) on each of DATASETS.TEST."""
    return {data: metrics["mIoU"] for data, metrics in evaluate_metrics(cfg, seed).items()}


def evaluate_metrics(cfg: CfgNode, seed: int) -> dict[str, dict[str, float]]:
    """Return the metrics (%) on each of DATASETS.TEST."""
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    return {data: results[data]["sem_seg"] for data in cfg.DATASETS.TEST}


def read_results(folder: Path) -> dict[str, float] | None:
    """Return the mIoU (%) on each benchmark that a complete training wrote last; None if it is not complete."""
    metrics = folder / "metrics.json"
    if not (folder / "model_final.pth").exists() or not metrics.exists():
        return None
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    results = [row for row in rows if "average/mIoU" in row]
    return {data: results[-1][f"{data}/sem_seg/mIoU"] for data in DATA} if results else None


def train(config: str, options: list[str], seed: int, iterations: int, folder: Path, threads: int) -> dict[str, float]:
    """Train in a new process, unless the training is complete, and evaluate without PAMR.

    Args:
        config: the file below configs/shapes.
        options: KEY, VALUE pairs over its values.
        seed: of the training.
        iterations: of the training; the second stage is the last quarter of them.
        folder: for logs and checkpoints.
        threads: of the process.

    Returns:
        the mIoU (%) on each benchmark.

    Raises:
        SystemExit: it failed; has the end of its log.
    """
    results = read_results(folder)
    if results is None:
        command = [sys.executable, "train_net.py", "--config-file", f"configs/shapes/{config}", "--resume"]
        command += ["SEED", str(seed), "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(iterations)]
        command += ["MODEL.TCL.UNFREEZE_ITER", str(iterations * 3 // 4), "VIS_PERIOD", "0", *WITHOUT_PAMR, *options]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        results = read_results(folder)
        if run.returncode or results is None:
            sys.exit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return results


def train_all(
    recipes: dict[str, tuple[str, list[str]]], seeds: list[int], iterations: int, output: Path, jobs: int
) -> dict[str, list[dict[str, float]]]:
    """Train each recipe with each seed, `jobs` at once: the first seed of all recipes, then the second.

    Args:
        recipes: by name, which is the folder's below `output` too, a config below configs/shapes, and KEY, VALUE pairs.
        seeds: of the trainings.
        iterations: of each training.
        output: folder for all of them.
        jobs: trainings beside each other; they share the cores.

    Returns:
        by recipe, the mIoU (%) on each benchmark of each seed.
    """
    threads = max(1, os.cpu_count() // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        runs = {}
        for seed in seeds:
            for name, (config, options) in recipes.items():
                folder = output.resolve() / name / f"{iterations}_{seed}"
                runs[pool.submit(train, config, options, seed, iterations, folder, threads)] = name, seed

        try:
            for run in as_completed(runs):
                name, seed = runs[run]
                print(f"{name}, seed {seed}: {run.result()}", flush=True)
        except BaseException:  # also Ctrl-C: what has not begun must not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: [run.result() for run in runs if runs[run][0] == name] for name in recipes}


def cell(values: list[float], digits: int = 1) -> str:
    """Return mean ± standard deviation, with so many digits after the point; the mean alone of one value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def compare_order(rows: tuple[Row, ...], results: dict[Row, list[float]]) -> Iterator[tuple[str, str, str, str]]:
    """Compare each pair of rows, the better published one first.

    Args:
        rows: of one table. A pair of which it is not known which is the better published one is left out.
        results: by row, the mIoU (%) of each seed.

    Yields:
        the two rows, the published difference, ours, and whether the order holds. Differences within the spread, the
        sum of the two standard deviations, say nothing.
    """
    for pair in combinations(rows, 2):
        worse, better = sorted(pair, key=lambda row: row.published)
        if max(worse.published) >= min(better.published):
            continue

        difference = statistics.mean(results[better]) - statistics.mean(results[worse])
        spread = sum(statistics.stdev(results[row]) for row in pair if len(results[row]) > 1)
        outcome = "yes" if difference > 0 else "no"
        if abs(difference) <= spread:
            outcome = "within the spread"
        bounds = {min(better.published) - max(worse.published), max(better.published) - min(worse.published)}
        published = " to ".join(f"{bound:+.1f}" for bound in sorted(bounds))
        yield f"{better.name} > {worse.name}", published, f"{difference:+.1f} ± {spread:.1f}", outcome


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of what train_all is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="trainings beside each other")
    parser.add_argument("--output", type=Path, default=Path("output/shapes/ablations"))
    return parser


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="over every row's config")
    args = parser.parse_args()

    # Evaluate what is not trained, and train the others
    rows = list(dict.fromkeys(row for table in TABLES.values() for row in table))
    trained = {Path(row.config).stem: (row.config, args.opts) for row in rows if row.letter != "A"}
    runs = train_all(trained, args.seeds, args.iterations, args.output, args.jobs)
    dense_clip = TABLES["(a)"][0]
    options = [*WITHOUT_PAMR, *args.opts, "OUTPUT_DIR", args.output / "dense_clip"]
    runs["maskclip"] = [evaluate(load_config(ROOT / "configs/shapes" / dense_clip.config, options), 0)]

    # Print the tables
    print(f"\nmIoU (%) after {args.iterations} iterations, without PAMR; mean ± standard deviation of {args.seeds}:")
    titles = ("", "losses", "published, VOC20", *DATA)
    for title, table in TABLES.items():
        lines = []
        for row in table:
            ours = runs[Path(row.config).stem]
            published = " or ".join(map(str, row.published))
            lines.append((row.letter, row.name, published, *(cell([run[data] for run in ours]) for data in DATA)))
        print(f"\n{title}\n\n{tabulate(lines, titles, 'pipe', disable_numparse=True)}")

    # Compare their order
    results = {row: [run[LIKE_VOC20] for run in runs[Path(row.config).stem]] for row in rows}
    order = [line for table in TABLES.values() for line in compare_order(table, results)]
    print(f"\nDoes the published order hold on {LIKE_VOC20}?\n")
    if len(args.seeds) == 1:
        print("One seed has no spread: small differences say nothing.\n")
    print(tabulate(order, ("better > worse", "published", "here", "holds"), "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
