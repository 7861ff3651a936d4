#!/usr/bin/env python
"""Measures parts of the project against plain references written here, in one run: medians, ratios, differences.

python tools/benchmark.py                          # all
python tools/benchmark.py scoring --repeat 50      # one
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from tabulate import tabulate

from tcl_d2 import add_tcl_config
from tcl_d2.checkpoint import TCLCheckpointer, to_official
from tcl_d2.data import register_benchmark
from tcl_d2.evaluation import ZeroShotSemSegEvaluator
from tcl_d2.files import replacing


def seconds(function: Callable[[], object], repeat: int) -> float:
    """Median time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory(function: Callable[[], object]) -> float:
    """MB that the process holds at most during a call, beyond what it held before (Linux)."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far

    def held(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    before = held("VmRSS")
    function()
    return (held("VmHWM") - before) / 1024


def scoring(repeat: int) -> list[dict]:
    """Scoring one 171-class 640 x 480 prediction, from the label file to the confusion matrix, beyond its argmax.

    Reference: numpy's two-dimensional histogram of the pixels that count, of the label read before.
    """
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        label = rng.integers(0, 171, (8, 10)).repeat(60, 0).repeat(64, 1).astype(np.uint8)
        label[::50] = 255
        path = Path(folder, "0.png")
        Image.fromarray(label).save(path)
        register_benchmark("benchmark_scoring", folder, folder, [f"class {k}" for k in range(171)])
        try:
            evaluator = ZeroShotSemSegEvaluator("benchmark_scoring", distributed=False)
        finally:
            DatasetCatalog.remove("benchmark_scoring")
            MetadataCatalog.remove("benchmark_scoring")
        prediction = torch.from_numpy(rng.integers(0, 171, label.shape))
        inputs, outputs = [{"sem_seg_file_name": str(path)}], [{"sem_seg_labels": prediction}]
        ours = seconds(lambda: evaluator.process(inputs, outputs), repeat)
        evaluator.reset()
        evaluator.process(inputs, outputs)

    def plain() -> np.ndarray:
        valid = label != 255
        edges = np.arange(172)
        return np.histogram2d(label[valid], prediction.numpy()[valid], bins=(edges, edges))[0]

    scores = torch.rand(171, *label.shape)
    row = {
        "part": "scoring, 171 x 480 x 640",
        "unit": "ms",
        "ours": 1e3 * ours,
        "reference": 1e3 * seconds(plain, repeat),
    }
    row["difference"] = float(np.abs(evaluator._matrix.numpy() - plain()).max())
    argmax = {"part": "  the argmax of its scores, for comparison", "unit": "ms"}
    return [row, {**argmax, "ours": 1e3 * seconds(lambda: scores.argmax(0), repeat)}]


def _vit_b16() -> CfgNode:
    cfg = get_cfg()
    add_tcl_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.CLIP.PRETRAINED, cfg.MODEL.DEVICE = "TCL", "", "cpu"
    return cfg


def _peak_memory(labels_only: bool) -> tuple[float, torch.Tensor]:
    """Peak memory in MB beyond the built model's, and the labels, of 1,203 classes on a 640 x 480 image."""
    torch.manual_seed(0)
    model = build_model(_vit_b16()).eval()
    model.set_text_embeddings(torch.randn(1203, model.clip.embed_dim))
    image = torch.randint(0, 256, (3, 448, 597))
    one = {"image": image, "height": 480, "width": 640, "labels_only": labels_only}
    outputs = []
    peak = peak_memory(lambda: outputs.extend(model([one])))
    labels = outputs[0]["sem_seg_labels"] if labels_only else outputs[0]["sem_seg"].argmax(0)
    return peak, labels.numpy()


def large_vocabulary(repeat: int) -> list[dict]:
    """Peak memory of 1,203 classes (ViT-B/16, random weights): labels alone against all scores at full size."""
    peaks, labels = [], []
    for labels_only in (True, False):
        with get_context("spawn").Pool(1) as pool:  # a process each: peaks do not fall again
            peak, map_ = pool.apply(_peak_memory, (labels_only,))
        peaks.append(peak)
        labels.append(map_)
    difference = float((labels[0] != labels[1]).mean())
    part = "1,203 classes, 480 x 640: peak memory"
    return [{"part": part, "unit": "MB", "ours": peaks[0], "reference": peaks[1], "difference": difference}]


def _peak_of_loading(path: str) -> float:
    """Peak memory in MB beyond the built model's of loading a checkpoint into it."""
    model = build_model(_vit_b16())
    return peak_memory(lambda: TCLCheckpointer(model).load(path))


def loading(repeat: int) -> list[dict]:
    """Loading an official checkpoint of ViT-B/16 size into the model, against torch.load of the file alone."""
    logging.getLogger().setLevel(logging.WARNING)
    model = build_model(_vit_b16())
    size = sum(value.nbytes for value in model.state_dict().values()) / 2**20
    with TemporaryDirectory() as folder:
        path = f"{folder}/tcl.pth"
        torch.save({"model": to_official(model.state_dict(), freeze=11)}, path)
        count = min(repeat, 5)
        ours = seconds(lambda: TCLCheckpointer(model).load(path), count)
        plain = seconds(lambda: torch.load(path, map_location="cpu", weights_only=True), count)
        with get_context("spawn").Pool(1) as pool:
            peak = pool.apply(_peak_of_loading, (path,))
    part = f"loading an official checkpoint, {size:.0f} MB"
    return [
        {"part": part, "unit": "s", "ours": ours, "reference": plain},
        {"part": "  peak memory beyond the model, and the model", "unit": "MB", "ours": peak, "reference": size},
    ]


BENCHMARKS = {"scoring": scoring, "large_vocabulary": large_vocabulary, "loading": loading}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; else all")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("output/benchmark.json"))
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    rows = [row for name in args.names or BENCHMARKS for row in BENCHMARKS[name](args.repeat)]
    for row in rows:
        if "reference" in row:
            row["ratio"] = row["reference"] / row["ours"]
    header = ("part", "unit", "ours", "reference", "ratio", "difference")
    print(tabulate([[row.get(key) for key in header] for row in rows], header, "pipe", floatfmt=".3g"))
    with replacing(args.output) as unfinished:
        unfinished.write_text(
            json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows})
        )


if __name__ == "__main__":
    main()
