#!/usr/bin/env python
"""Repeat the paper's ablation of the losses on the small world: train each recipe with several seeds, print a table.

Runs that are complete are not repeated, and a stopped one goes on from its last checkpoint.

    python dev/shapes_ablations.py --iterations 120 --seeds 1 2 3
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {  # row of the table -> config below configs/shapes
    "decoder without TCL": "ablations/decoder_without_tcl.yaml",
    "whole-image contrast in place of TCL": "ablations/whole_image.yaml",
    "image level alone": "ablations/image_level.yaml",
    "image + feature level": "ablations/image_and_feature_level.yaml",
    "all but area": "ablations/without_area.yaml",
    "all but TV": "ablations/without_tv.yaml",
    "all": "tcl.yaml",
}
DATA = ("shapes_val", "shapes_objects_val", "shapes_stuff_val")


def read_results(folder: Path) -> dict | None:
    """Return the mIoU (%) on each benchmark that a complete run wrote last; None if it is not complete."""
    metrics = folder / "metrics.json"
    if not (folder / "model_final.pth").exists() or not metrics.exists():
        return None
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    results = [row for row in rows if "average/mIoU" in row]
    return {data: results[-1][f"{data}/sem_seg/mIoU"] for data in DATA} if results else None


def train(config: str, seed: int, iterations: int, folder: Path) -> dict:
    """Train a recipe in a new process, with its log in `folder`, unless it is complete; return its results."""
    results = read_results(folder)
    if results is None:
        command = [sys.executable, "train_net.py", "--config-file", f"configs/shapes/{config}", "--resume"]
        command += ["SEED", str(seed), "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(iterations)]
        command += ["MODEL.TCL.UNFREEZE_ITER", str(iterations * 3 // 4)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        results = read_results(folder)
        if run.returncode or results is None:
            sys.exit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return results


def cell(values: list[float]) -> str:
    """Return mean ± standard deviation; the mean alone of one value."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("output/shapes/ablations"))
    args = parser.parse_args()
    output = args.output.resolve()

    # Train
    results = {name: [] for name in RECIPES}
    for seed in args.seeds:
        for name, config in RECIPES.items():
            folder = output / Path(config).stem / f"{args.iterations}_{seed}"
            results[name].append(train(config, seed, args.iterations, folder))
            print(f"{name}, seed {seed}: {results[name][-1]}", flush=True)

    # Print the table
    table = [(name, *(cell([run[data] for run in runs]) for data in DATA)) for name, runs in results.items()]
    print(f"\nmIoU (%) after {args.iterations} iterations, mean ± standard deviation of seeds {args.seeds}:\n")
    print(tabulate(table, ("losses", *DATA), "pipe"))


if __name__ == "__main__":
    main()
