#!/usr/bin/env python
"""Evaluate two methods on the small world with one setting changed at a time: what each choice alone does to mIoU.

python dev/shapes_settings.py
"""

import argparse
import logging
from pathlib import Path

from shapes_ablations import DATA, ROOT, evaluate_metrics
from tabulate import tabulate
from tqdm import tqdm

from tcl_d2 import load_config
from tcl_d2.data.benchmarks import benchmark_classes
from tcl_d2.data.shapes import GROUNDS

TEST, INPUT, DENSE = "TEST.ZERO_SHOT", "INPUT", "MODEL.DENSE_CLIP"
METHODS = {"NACLIP": "dense_clip.yaml", "TCL": "trained.yaml"}
PRESENT = "mean over the classes that are there"
# By name of the choice: KEY, VALUE pairs, and the only method that has the setting
CHOICES = {
    "as configured": ([], None),
    "one template of five": ([f"{TEST}.TEMPLATES", ["{}"]], None),
    "prompts normalized before their mean": ([f"{TEST}.NORMALIZE_PROMPTS", True], "TCL"),
    "prompts not normalized": ([f"{TEST}.NORMALIZE_PROMPTS", False], "NACLIP"),
    "images of 72 pixels": ([f"{INPUT}.MIN_SIZE_TEST", 72], None),
    "images of 128 pixels": ([f"{INPUT}.MIN_SIZE_TEST", 128, f"{INPUT}.MAX_SIZE_TEST", 128], None),
    "windows side by side": ([f"{TEST}.STRIDE", 48], None),
    "windows every 12 pixels": ([f"{TEST}.STRIDE", 12], None),
    "whole images": ([f"{TEST}.CROP_SIZE", 0], None),
    "masks averaged (TCL's)": ([f"{DENSE}.SCORES", "mask", f"{TEST}.LOGIT_SCALE", 0.0], "NACLIP"),
    "probabilities averaged": ([f"{DENSE}.SCORES", "probability", f"{TEST}.LOGIT_SCALE", 0.0], "NACLIP"),
    "softmax scale 20": ([f"{TEST}.LOGIT_SCALE", 20.0], "NACLIP"),
    "softmax scale 100": ([f"{TEST}.LOGIT_SCALE", 100.0], "NACLIP"),
    "background's score 0.5": ([f"{TEST}.BACKGROUND_SCORE", 0.5], None),
    "background's score 0.3": ([f"{TEST}.BACKGROUND_SCORE", 0.3], "TCL"),
    "classes of less than 10 % left out": ([f"{TEST}.AREA_THRESHOLD", 0.1], None),
    "PAMR of windows": ([f"{TEST}.REFINE", "pamr"], "NACLIP"),
    "PAMR of the whole image": ([f"{TEST}.REFINE", "pamr", f"{TEST}.PAMR.WHOLE_IMAGE", True], None),
    "no refinement": ([f"{TEST}.REFINE", "none"], "TCL"),
    "prompt denoising": ([f"{DENSE}.PROMPT_DENOISING", 0.5], "NACLIP"),
    "bfloat16": ([f"{TEST}.PRECISION", "bfloat16"], None),
    PRESENT: ([f"{TEST}.MEASURES", ["PresentIoU"]], None),
}


def words_options(dataset: str, folder: Path) -> dict[str, list]:
    """Return KEY, VALUE pairs by name of a choice of words, whose files are written into a folder."""
    classes, background = benchmark_classes(dataset)
    choices = {"names without spaces": [[name.replace(" ", "")] for name in classes]}
    if background:
        choices["words of the background"] = [[name] for name in classes]

    options = {}
    for choice, lines in choices.items():
        if background:
            lines = [["background", *(GROUNDS if "background" in choice else ())], *lines]
        path = folder / f"{dataset}, {choice}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(", ".join(words) + "\n" for words in lines))
        options[choice] = [f"{TEST}.WORDS", path]
    return options


def measure(method: str, options: list, dataset: str, output: Path) -> dict[str, float]:
    """Return the metrics (%) of a method on a benchmark."""
    options = [*options, "DATASETS.TEST", (dataset,), "OUTPUT_DIR", output]
    return evaluate_metrics(load_config(ROOT / "configs/shapes" / METHODS[method], options), 0)[dataset]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=0, help="validation images, spread evenly; 0 for all")
    parser.add_argument("--output", type=Path, default=Path("output/shapes/settings"))
    args = parser.parse_args()
    for name in ("detectron2", "tcl_d2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)

    # A column for each method and benchmark
    few = [f"{TEST}.MAX_IMAGES", args.images]
    table = {}
    columns = [(method, data) for method in METHODS for data in DATA]
    for method, data in tqdm(columns):
        words = {name: (options, None) for name, options in words_options(data, args.output / "words").items()}
        for choice, (options, only) in {**CHOICES, **words}.items():
            if only in (None, method):
                metrics = measure(method, [*options, *few], data, args.output / "evaluation")
                metric = metrics["present_mIoU" if choice == PRESENT else "mIoU"]
                table.setdefault(choice, {})[method, data] = f"{metric:.1f}"
    order = [*CHOICES, *(choice for choice in table if choice not in CHOICES)]
    rows = [(choice, *(table[choice].get(column, "") for column in columns)) for choice in order]
    print(tabulate(rows, ("", *(f"{method}, {data}" for method, data in columns)), "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
