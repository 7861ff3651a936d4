"""A whole evaluation, files to mIoU, against the plain way: pictures made here in PASCAL VOC's format."""

import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import plain
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from measure import DEVICE, in_new_process, low_precisions, peak_memory, time_call, trained_like, vit_b16
from PIL import Image
from torch.nn import functional as F

from tcl_d2.data.benchmarks import benchmark_classes
from tcl_d2.engine import Trainer
from tcl_d2.modeling import TCL
from tcl_d2.words.parsing import as_lists

BENCHMARKS = ("zeroshot_voc_val", "zeroshot_voc20_val")
WINDOW, STRIDE = 448, 224


def write_pictures(root: Path, count: int) -> None:
    """Write pictures of 500 x 375 with labels as PASCAL VOC 2012 has them."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        color = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        color.resize((500, 375), Image.Resampling.BICUBIC).save(root / f"JPEGImages/{number:06d}.jpg", quality=90)
        label = rng.permutation(np.resize([*range(21), 255], 300)).reshape(15, 20).astype(np.uint8)
        Image.fromarray(label.repeat(25, 0).repeat(25, 1)).save(root / f"SegmentationClass/{number:06d}.png")
    names = "\n".join(f"{number:06d}" for number in range(count))
    (root / "ImageSets/Segmentation/val.txt").write_text(names)


def build(folder: str, precision: str) -> tuple[CfgNode, TCL]:
    """Return the published setting with PAMR, and its model of random weights."""
    for name in ("detectron2", "tcl_d2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options = ["DATASETS.TEST", BENCHMARKS, "OUTPUT_DIR", f"{folder}/{time.time_ns()}", "DATALOADER.NUM_WORKERS", 0]
    cfg = vit_b16(*options, "TEST.ZERO_SHOT.TEXT_CACHE", f"{folder}/texts", "TEST.ZERO_SHOT.PRECISION", precision)
    torch.manual_seed(0)
    return cfg, trained_like(build_model(cfg).eval())


@torch.no_grad()
def plain_evaluation(folder: str, cfg: CfgNode, model: TCL) -> dict[str, float]:
    """Return mIoU (%) the plain way: each benchmark by itself, each window by plain.masks, all scores at full size."""
    root, results = Path(folder, "VOC2012"), {}
    for name in BENCHMARKS:
        words, has_background = benchmark_classes(name)
        text = model.text_features([word for class_words in as_lists(words) for word in class_words])
        count = 20 + has_background
        confusion = np.zeros((count, count))
        for key in (root / "ImageSets/Segmentation/val.txt").read_text().split():
            # Read the picture and the label, whose 0 is the background
            picture = Image.open(root / f"JPEGImages/{key}.jpg").convert("RGB")
            label = np.asarray(Image.open(root / f"SegmentationClass/{key}.png")).astype(int)
            valid = (label != 255) & (has_background | (label > 0))
            label -= not has_background

            # Average the windows' masks
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float().to(DEVICE)
            scale = cfg.INPUT.MIN_SIZE_TEST / min(picture.size)
            size = [int(side * scale + 0.5) for side in picture.size[::-1]]
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False).round()
            image = (pixels - model.pixel_mean) / model.pixel_std
            total, times = torch.zeros(1, len(text), *size, device=DEVICE), torch.zeros(size, device=DEVICE)
            for y, x in windows(size):
                place = np.s_[..., y : y + WINDOW, x : x + WINDOW]
                total[place] += plain.masks(model, image[place], text)
                times[place] += 1
            scores = F.interpolate(total / times, label.shape, mode="bilinear", align_corners=False)[0]
            if has_background:
                background = torch.full_like(scores[:1], cfg.TEST.ZERO_SHOT.BACKGROUND_SCORE)
                scores = torch.cat([background, scores])
            predicted = scores.argmax(0).cpu().numpy()
            edges = np.arange(count + 1)
            confusion += np.histogram2d(label[valid], predicted[valid], bins=(edges, edges))[0]
        both = confusion.diagonal()
        results[name] = float(100 * (both / (confusion.sum(0) + confusion.sum(1) - both)).mean())
    return results


def windows(size: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners of the windows that cover an image."""
    starts = [[*range(0, max(side - WINDOW, 0), STRIDE), max(side - WINDOW, 0)] for side in size]
    return ((y, x) for y in starts[0] for x in starts[1])


def evaluate(cfg: CfgNode, model: TCL) -> dict[str, float]:
    """Return mIoU (%) as the project evaluates: both benchmarks in one pass."""
    results = Trainer.test(cfg, model)
    return {name: results[name]["sem_seg"]["mIoU"] for name in BENCHMARKS}


class Remembering(torch.nn.Module):
    """Keeps a model's outputs, and gives them again at once: what is left of the time is all but the model."""

    def __init__(self, model: TCL):
        super().__init__()
        self.model, self.outputs = model, {}

    def set_dataset(self, *names: str, class_words: dict | None = None) -> None:
        """Let the model look for the classes of the benchmarks."""
        self.model.set_dataset(*names, class_words=class_words)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment a batch, or remember how it was segmented."""
        key = tuple(inputs["file_name"] for inputs in batched_inputs)
        if key not in self.outputs:
            self.outputs[key] = self.model(batched_inputs)
        return self.outputs[key]


def measure(folder: str, precision: str, is_plain: bool, count: int) -> tuple[dict[str, float], float, float, float]:
    """Evaluate in a process of its own: mIoU, the seconds, those without the model, and the peak in MB."""
    for name in BENCHMARKS:
        MetadataCatalog.get(name).__dict__["num_images"] = (count,)
    cfg, model = build(folder, precision)
    results, times = {}, []

    def run() -> None:
        evaluation = partial(plain_evaluation, folder, cfg, model) if is_plain else partial(evaluate, cfg, remembering)
        for _ in range(1 if is_plain else 2):
            times.append(time_call(lambda: results.update(evaluation())))

    remembering = Remembering(model)
    peak = peak_memory(run)
    return results, times[0], times[-1], peak


def evaluation(repeat: int) -> list[dict]:
    """Measure both VOC benchmarks from files to mIoU, `repeat` pictures, against each by itself the plain way."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, DETECTRON2_DATASETS=folder):
        write_pictures(Path(folder, "VOC2012"), repeat)
        expected, reference, _, reference_peak = in_new_process(measure, folder, "float32", True, repeat)
        rows = []
        for precision in ("float32", *(str(dtype).removeprefix("torch.") for dtype in low_precisions())):
            results, ours, rest, peak = in_new_process(measure, folder, precision, False, repeat)
            difference = max(abs(results[name] - expected[name]) for name in BENCHMARKS)
            row = {"part": f"both VOC benchmarks, {repeat} pictures, {precision}", "unit": "s", "ours": ours}
            rows.append({**row, "reference": reference, "difference": difference})
            rows.append(
                {"part": "  all but the model (reference: with it)", "unit": "s", "ours": rest, "reference": ours}
            )
            rows.append({"part": "  peak memory", "unit": "MB", "ours": peak, "reference": reference_peak})
    return rows
