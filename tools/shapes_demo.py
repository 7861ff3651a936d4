#!/usr/bin/env python
"""The main job on the small world: draws it, trains TCL, and compares it with the same CLIP's dense features.

Ends with a table (each benchmark, with and without PAMR) and pictures. Can be stopped and started again.

    python tools/shapes_demo.py --output output/shapes
"""

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from tcl_d2.data.benchmarks import class_legend
from tcl_d2.data.labels import LabelMapper
from tcl_d2.engine import Trainer
from tcl_d2.modeling.text import dataset_vocabulary
from tcl_d2.predictor import TCLPredictor
from tcl_d2.utils.files import replacing

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/shapes/tcl.yaml"
PAMR_OFF = ["TEST.ZERO_SHOT.PAMR.ENABLED", "False"]
METHODS = (  # name, config, overrides
    ("dense CLIP", "maskclip.yaml", [*PAMR_OFF, "TEST.ZERO_SHOT.BACKGROUND_SCORE", "0.3"]),
    ("dense CLIP + PAMR", "maskclip.yaml", []),
    ("TCL", "tcl.yaml", PAMR_OFF),
    ("TCL + PAMR", "tcl.yaml", []),
)


def run(*command: object) -> None:
    """Runs a command of the project, shown, with its output on the screen."""
    print("$ python " + " ".join(map(str, command)), flush=True)
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def build(config: str, *overrides: object) -> TCLPredictor:
    return TCLPredictor(ROOT / "configs/shapes" / config, *overrides)


def evaluate(weights: Path) -> dict[str, dict[str, float]]:
    """mIoU in percent of each method on each benchmark of the small world."""
    results = {}
    for name, config, overrides in METHODS:
        method = build(config, "MODEL.WEIGHTS", weights if config == "tcl.yaml" else "", *overrides)
        tested = Trainer.test(method.cfg, method.model)
        results[name] = {data: metrics["sem_seg"]["mIoU"] for data, metrics in tested.items() if data != "average"}
    return results


def draw(path: Path, data: str, panels: dict[str, np.ndarray]) -> None:
    """Saves panels side by side, RGB images [H, W, 3] or class maps [H, W], with a legend of the classes seen."""
    names, colors = class_legend(data)
    colors = np.array(colors, np.uint8)
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.4))
    seen = set()
    for axis, (title, panel) in zip(axes, panels.items()):
        if panel.ndim == 2:
            values, counts = np.unique(panel, return_counts=True)
            seen |= {int(value) for value, count in zip(values, counts) if count > panel.size / 200}
            panel = colors[panel]
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    handles = [plt.Line2D([], [], marker="s", ls="", ms=9, color=colors[k] / 255, mec="gray") for k in sorted(seen)]
    figure.legend(handles, [names[k] for k in sorted(seen)], loc="lower center", ncol=6, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_pictures(folder: Path, weights: Path, count: int = 4, data: str = "shapes_val") -> list[Path]:
    """Pictures of image, ground truth, baseline and TCL (both with PAMR) for the first images of a benchmark."""
    rule = LabelMapper.of(data)
    words, background = dataset_vocabulary(data)
    predictors = build("maskclip.yaml"), build("tcl.yaml", "MODEL.WEIGHTS", weights)
    paths = []
    for one in DatasetCatalog.get(data)[:count]:
        clip, tcl = (predictor(one["file_name"], words, background) for predictor in predictors)
        label = rule.read(one["sem_seg_file_name"])
        paths.append(folder / f"{one['image_id']}.png")
        panels = {"image": tcl.image, "ground truth": label, "dense CLIP": clip.labels, "TCL": tcl.labels}
        draw(paths[-1], data, panels)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/shapes"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    output = args.output.resolve()

    run("datasets/prepare_shapes.py")
    # The comparison below evaluates, so training itself does not.
    options = ("DATASETS.TEST", "()", "SEED", args.seed, "OUTPUT_DIR", output / "tcl")
    run("train_net.py", "--config-file", CONFIG, "--resume", *options)
    logging.getLogger("detectron2").setLevel(logging.WARNING)  # model listings and timings of each evaluation
    setup_logger(name="tcl_d2")
    weights = output / "tcl/model_final.pth"
    results = evaluate(weights)
    with replacing(output / "results.json") as unfinished:
        unfinished.write_text(json.dumps(results, indent=1))
    pictures = draw_pictures(output / "pictures", weights)

    data = list(next(iter(results.values())))
    print("\nmIoU (%) on the small world:\n")
    print(tabulate([(name, *row.values()) for name, row in results.items()], ("", *data), "pipe", floatfmt=".1f"))
    print("\nPictures (image, ground truth, dense CLIP, TCL):")
    print(*(f"  {path}" for path in pictures), sep="\n")
    print(
        f"\nThe model: {weights}\nNext:\n"
        f"  its losses and masks     tensorboard --logdir {output / 'tcl'}\n"
        "  your own data and words  GETTING_STARTED.md\n"
        "  the paper's recipe       python train_net.py --config-file configs/tcl.yaml --num-gpus 8"
    )


if __name__ == "__main__":
    main()
