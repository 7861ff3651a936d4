#!/usr/bin/env python
"""Draw the small world, train TCL on it, and compare TCL with the dense features of the same CLIP.

It ends with a table of each benchmark, with and without PAMR, and of training-free methods on the same CLIP, and with
pictures. It can be stopped and started again.

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
from tcl_d2.predictor import TCLPredictor
from tcl_d2.utils.files import replacing
from tcl_d2.words.vocabulary import dataset_classes

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/shapes/tcl.yaml"
PAMR_OFF = ["TEST.ZERO_SHOT.REFINE", "none"]
HEADS = ("clip", "maskclip", "sclip", "clearclip", "naclip")  # ProxyCLIP has no vision model for such scenes
METHODS = (  # name, config, overrides
    ("dense CLIP", "maskclip.yaml", [*PAMR_OFF, "TEST.ZERO_SHOT.BACKGROUND_SCORE", "0.3"]),
    ("dense CLIP + PAMR", "maskclip.yaml", []),
    ("TCL", "tcl.yaml", PAMR_OFF),
    ("TCL + PAMR", "tcl.yaml", []),
    *((head, "dense_clip.yaml", ["MODEL.DENSE_CLIP.HEAD", head]) for head in HEADS),
    ("ReCo", "reco.yaml", []),
)


def run(*command: object) -> None:
    """Run a command of the project with its output on the screen."""
    print("$ python " + " ".join(map(str, command)), flush=True)
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def build(config: str, *overrides: object) -> TCLPredictor:
    """Build a predictor of a config below configs/shapes."""
    return TCLPredictor(ROOT / "configs/shapes" / config, *overrides)


def evaluate(weights: Path, index: Path) -> dict[str, dict[str, float]]:
    """Evaluate each method.

    Args:
        weights: of TCL.
        index: folder of the index of ReCo's archive.

    Returns:
        mIoU in percent, by method and benchmark of the small world.
    """
    results = {}
    for name, config, overrides in METHODS:
        files = ["MODEL.WEIGHTS", weights if config == "tcl.yaml" else "", "MODEL.RECO.INDEX", index]
        method = build(config, *files, *overrides)
        tested = Trainer.test(method.cfg, method.model)
        results[name] = {data: metrics["sem_seg"]["mIoU"] for data, metrics in tested.items() if data != "average"}
    return results


def draw(path: Path, data: str, panels: dict[str, np.ndarray]) -> None:
    """Draw panels side by side, RGB images [H, W, 3] or class maps [H, W], with a legend of their classes."""
    names, colors = class_legend(data)
    colors = np.array(colors, np.uint8)

    # Draw the panels
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.4))
    visible = set()
    for axis, (title, panel) in zip(axes, panels.items()):
        if panel.ndim == 2:
            values, counts = np.unique(panel, return_counts=True)
            visible |= {int(value) for value, count in zip(values, counts) if count > panel.size / 200}
            panel = colors[panel]
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")

    # Draw the legend
    indices = sorted(visible)
    handles = [plt.Line2D([], [], marker="s", ls="", ms=9, color=colors[k] / 255, mec="gray") for k in indices]
    figure.legend(handles, [names[k] for k in indices], loc="lower center", ncol=6, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_pictures(folder: Path, weights: Path, count: int = 4, data: str = "shapes_val") -> list[Path]:
    """Draw the first images of a benchmark with ground truth, baseline and TCL (both with PAMR); return the paths."""
    label_mapper = LabelMapper.of(data)
    words, background = dataset_classes(data)
    dense_clip, tcl = build("maskclip.yaml"), build("tcl.yaml", "MODEL.WEIGHTS", weights)

    paths = []
    for dataset_dict in DatasetCatalog.get(data)[:count]:
        segmentation = tcl(dataset_dict["file_name"], words, background)
        panels = {
            "image": segmentation.image,
            "ground truth": label_mapper.read(dataset_dict["sem_seg_file_name"]),
            "dense CLIP": dense_clip(dataset_dict["file_name"], words, background).labels,
            "TCL": segmentation.labels,
        }
        path = folder / f"{dataset_dict['image_id']}.png"
        draw(path, data, panels)
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/shapes"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    output = args.output.resolve()

    # Draw the world, train (the comparison evaluates, so training itself does not), and index the archive
    run("datasets/prepare_shapes.py")
    options = ("DATASETS.TEST", "()", "SEED", args.seed, "OUTPUT_DIR", output / "tcl")
    run("train_net.py", "--config-file", CONFIG, "--resume", *options)
    index = output / "reco/index"
    run("-m", "tcl_d2", "index", "shapes_train", "--config-file", ROOT / "configs/shapes/reco.yaml", "--output", index)

    # Compare
    logging.getLogger("detectron2").setLevel(logging.WARNING)  # without model listings and timings of each evaluation
    setup_logger(name="tcl_d2")
    weights = output / "tcl/model_final.pth"
    results = evaluate(weights, index)
    with replacing(output / "results.json") as unfinished:
        unfinished.write_text(json.dumps(results, indent=1))
    pictures = draw_pictures(output / "pictures", weights)

    # Print the results
    data = list(next(iter(results.values())))
    print("\nmIoU (%) on the small world:\n")
    print(tabulate([(name, *row.values()) for name, row in results.items()], ("", *data), "pipe", floatfmt=".1f"))
    print(f"\n{' '.join(HEADS)}: the same CLIP with another last block, without training (docs/dense_clip.md)")
    print("ReCo: the same CLIP and reference images that it retrieves, without training (docs/reco.md)")
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
