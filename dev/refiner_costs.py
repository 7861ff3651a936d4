#!/usr/bin/env python
"""Measure what refiners cost by the size of an image and the number of words: seconds and the peak of memory.

python dev/refiner_costs.py                         # all: docs/refiners.md
python dev/refiner_costs.py lposs --words 21        # one of them

The figures are of the refiner alone, for the scores that the model hands it. On a CPU, seconds are those of all threads
together, so that other programs do not count; give one thread (OMP_NUM_THREADS=1) for seconds on the clock. LPOSS has
the windows of its release, 224 pixels every 112, and a ViT-B/16 with random weights.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from measure import DEVICE, in_new_process, machine, peak_memory, time_call, vit_b16
from PIL import Image
from tabulate import tabulate
from torch import Tensor

from tcl_d2.data.shapes import draw_scene
from tcl_d2.modeling import Refiner, build_refiner
from tcl_d2.modeling.segmentor.windows import Windows, batch_windows

SIZES = ((448, 448), (448, 896))
REFINERS = {  # the last part of each is measured
    "pamr on the whole image": ("pamr", ("TEST.ZERO_SHOT.PAMR.WHOLE_IMAGE", True)),
    "densecrf": ("densecrf", ()),
    "lposs": ("lposs", ()),
    "lposs_pixels": ("lposs_pixels", ()),
}


def scene(size: tuple[int, int]) -> Tensor:
    """Draw a scene of the small world at a size (height, width), normalized as CLIP's images: [3, H, W]."""
    pixels = np.asarray(Image.fromarray(draw_scene(7, 0).image).resize(size[::-1], Image.Resampling.BICUBIC))
    cfg = vit_b16()
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return ((torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() - mean) / std).to(DEVICE)


def bind(refiner: Refiner, image: Tensor) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """Bind a refiner to an image; return it, and the shape of its scores, with -1 for the number of words."""
    if refiner.stage != "windows":
        return refiner.bind(image[None], None), [1, -1, *image.shape[1:]]
    windows = Windows(image, 224, 112)
    (crops,) = batch_windows([windows], len(windows.slices))
    corners = torch.tensor([(rows.start, columns.start) for rows, columns in windows.slices], device=image.device)
    return refiner.bind(crops, None, corners), [len(crops), -1, 14, 14]


def spent(function: Callable[[], object]) -> float:
    """Return the seconds of a call: a GPU's on the clock, or the processor's."""
    before = time.process_time()
    on_clock = time_call(function)
    return on_clock if DEVICE == "cuda" else time.process_time() - before


@torch.no_grad()
def measure(name: str, size: tuple[int, int], words: int) -> tuple[float, float, float]:
    """Return seconds of binding and of refining the scores of some words, and the peak of memory in MB."""
    refine, options = REFINERS[name]
    options = ["TEST.ZERO_SHOT.REFINE", refine, "TEST.ZERO_SHOT.LPOSS.PRETRAINED", "", *options]
    refiner = build_refiner(vit_b16(*options)).parts[-1]
    refiner.load()
    image, bound, times = scene(size), [], []

    def run() -> None:
        times.append(spent(lambda: bound.extend(bind(refiner, image))))
        call, shape = bound
        scores = torch.rand([words if side == -1 else side for side in shape], device=DEVICE)
        times.append(spent(lambda: call(scores)))

    peak = peak_memory(run)
    return times[0], times[1], peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"refiners, of {'; '.join(REFINERS)}; default: all")
    parser.add_argument("--words", type=int, nargs="+", default=[21, 171], help="numbers of words")
    args = parser.parse_args()

    rows = []
    for name in args.names or REFINERS:
        for size in SIZES:
            for words in args.words:
                rows.append((name, f"{size[0]} x {size[1]}", words, *in_new_process(measure, name, size, words)))
                print(f"{time.strftime('%X')}", *rows[-1], flush=True)
    print(machine())
    header = ("refiner", "image", "words", "once, s", "words, s", "peak, MB")
    print(tabulate(rows, header, "pipe", floatfmt=(*[""] * 3, ".1f", ".1f", ".0f")))


if __name__ == "__main__":
    main()
