#!/usr/bin/env python
"""Measure how time and peak memory grow: with the image's side, words, pairs of a step and loader workers.

Each point is a process of its own, whose peak of memory is not that of another. Writes a table and a figure.

    python dev/growth.py                      # all; 25 minutes on 2 cores
    python dev/growth.py words --output output/growth
"""

import argparse
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import matplotlib
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from measure import DEVICE, in_new_process, machine, peak_memory, time_call, vit_b16
from PIL import Image
from tabulate import tabulate

from tcl_d2 import load_config
from tcl_d2.data import build_image_text_train_loader, register_caption_list
from tcl_d2.utils.files import replacing

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

ROOT = Path(__file__).resolve().parent.parent
LONG = 20  # seconds


def _seconds_and_peak(function: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds of up to three calls, no more of them after LONG, and the peak of memory in MB."""
    times = []

    def timed() -> None:
        while len(times) < 3 and sum(times) < LONG:
            times.append(time_call(function))

    peak = peak_memory(timed)
    return median(times), peak


def _segment(side: int, num_words: int) -> tuple[float, float]:
    """Segment a square image into words: TCL with PAMR, ViT-B/16, random weights; labels alone."""
    torch.manual_seed(0)
    model = build_model(vit_b16()).eval()
    model.set_text_embeddings(torch.randn(num_words, model.clip.embed_dim))
    model([{"image": torch.zeros(3, 32, 32), "labels_only": True}])  # a first call takes longer
    inputs = [{"image": torch.randint(0, 256, (3, side, side)), "labels_only": True}]
    return _seconds_and_peak(partial(model, inputs))


def _step(num_pairs: int) -> tuple[float, float]:
    """Compute losses and gradients of a batch in micro-batches of 16, on the small world's model."""
    torch.manual_seed(0)
    cfg = load_config(ROOT / "configs/shapes/tcl.yaml", ["SOLVER.IMS_PER_MICRO_BATCH", 16, "MODEL.DEVICE", DEVICE])
    model = build_model(cfg).train()

    def step(num_pairs: int) -> None:
        images = torch.randn(num_pairs, 3, 48, 48, device=DEVICE)
        tokens = torch.randint(1, 2000, (num_pairs, 32), device=DEVICE)
        sum(model.compute_losses(images, tokens).values()).backward()

    step(1)
    return _seconds_and_peak(partial(step, num_pairs))


def _load(num_workers: int, num_batches: int = 12) -> tuple[float, float]:
    """Load batches of 16 photos of 512 pixels a side with the recipe's augmentation, after a first one."""
    logging.disable(logging.WARNING)
    with TemporaryDirectory() as folder:
        # Write the photos
        lines = ["image\tcaption"]
        for number in range(64):
            path = Path(folder, f"{number}.jpg")
            noise = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
            Image.fromarray(noise).resize((512, 512)).save(path)
            lines.append(f"{path}\ta photo of colors")
        Path(folder, "captions.tsv").write_text("\n".join(lines))
        register_caption_list("growth_photos", f"{folder}/captions.tsv")

        # Load them
        options = ["SOLVER.IMS_PER_BATCH", 16, "DATALOADER.NUM_WORKERS", num_workers, "DATALOADER.SHUFFLE_BUFFER", 16]
        cfg = vit_b16(*options)
        cfg.DATASETS.TRAIN = ("growth_photos",)
        batches = iter(build_image_text_train_loader(cfg))
        next(batches)

        def load() -> None:
            for _ in range(num_batches):
                next(batches)

        try:
            return _seconds_and_peak(load)
        finally:
            DatasetCatalog.remove("growth_photos")


GROWTHS = {  # name -> what is varied, the values, what is measured
    "sides": (
        "side of the image in pixels (21 words)",
        (448, 672, 896, 1344, 1792, 2688, 4096),
        partial(_segment, num_words=21),
    ),
    "words": ("words (an image of 448 pixels)", (20, 100, 500, 1000, 2000, 5000), partial(_segment, 448)),
    "pairs": ("pairs of a step (by 16, small world)", (1, 4, 16, 64, 256, 1024), _step),
    "workers": ("loader workers (192 photos)", (0, 1, 2), _load),
}


def measure(name: str) -> list[tuple[int, float, float]]:
    """Return the points of a growth: value, seconds, peak of memory in MB."""
    _, values, function = GROWTHS[name]
    points = []
    for value in values:
        points.append((value, *in_new_process(function, value)))
        print(f"{time.strftime('%X')} {name} {value}: {points[-1][1]:.2f} s, {points[-1][2]:.0f} MB", flush=True)
    return points


def draw(growths: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Draw seconds and peaks of memory over what was varied, both from 0, so that a straight line shows as one."""
    figure, axes = plt.subplots(2, len(growths), figsize=(3.2 * len(growths), 5), squeeze=False)
    for column, (name, points) in zip(axes.T, growths.items()):
        values, times, peaks = zip(*points)
        for axis, heights, label in zip(column, (times, peaks), ("seconds", "peak memory, MB")):
            axis.plot(values, heights, "o-", markersize=3)
            axis.set(xlabel=GROWTHS[name][0], ylabel=label, ylim=(0, None), xlim=(0, None))
            axis.grid(alpha=0.3)

    figure.suptitle(machine(), fontsize=8)
    figure.tight_layout()
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(GROWTHS)}; default: all")
    parser.add_argument("--output", type=Path, default=Path("output/growth"), help="beginning of the files' names")
    args = parser.parse_args()
    if unknown := set(args.names) - set(GROWTHS):
        parser.error(f"no growth {', '.join(sorted(unknown))}; there are {', '.join(GROWTHS)}")

    growths = {name: measure(name) for name in args.names or GROWTHS}
    rows = [(GROWTHS[name][0], *point) for name, points in growths.items() for point in points]
    table = tabulate(
        rows, ("what grows", "value", "seconds", "peak memory, MB"), "pipe", floatfmt=("", "", ".2f", ".0f")
    )
    with replacing(args.output.with_suffix(".md")) as unfinished:
        unfinished.write_text(f"{machine()}, torch {torch.__version__}\n\n{table}\n")
    draw(growths, args.output.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
