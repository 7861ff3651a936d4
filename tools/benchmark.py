#!/usr/bin/env python
"""Measures parts of the project against plain references written here, in one run: medians, ratios, differences.

python tools/benchmark.py                          # all
python tools/benchmark.py scoring --repeat 50      # one
"""

import argparse
import io
import json
import logging
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import plain
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from tabulate import tabulate
from torch import Tensor

from tcl_d2 import add_tcl_config
from tcl_d2.checkpoint import TCLCheckpointer, to_official
from tcl_d2.data import ImageTextDatasetMapper, register_benchmark
from tcl_d2.data.mapper import read_image
from tcl_d2.engine import Trainer
from tcl_d2.evaluation import ZeroShotSemSegEvaluator
from tcl_d2.files import replacing
from tcl_d2.modeling import PAMR, TCL, Sim2Mask
from tcl_d2.modeling.pairs import pair_statistics

ROOT = Path(__file__).resolve().parent.parent


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

    def histogram() -> np.ndarray:
        valid = label != 255
        edges = np.arange(172)
        return np.histogram2d(label[valid], prediction.numpy()[valid], bins=(edges, edges))[0]

    scores = torch.rand(171, *label.shape)
    row = {
        "part": "scoring, 171 x 480 x 640",
        "unit": "ms",
        "ours": 1e3 * ours,
        "reference": 1e3 * seconds(histogram, repeat),
    }
    row["difference"] = float(np.abs(evaluator._matrix.numpy() - histogram()).max())
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
        reference = seconds(lambda: torch.load(path, map_location="cpu", weights_only=True), count)
        with get_context("spawn").Pool(1) as pool:
            peak = pool.apply(_peak_of_loading, (path,))
    part = f"loading an official checkpoint, {size:.0f} MB"
    return [
        {"part": part, "unit": "s", "ours": ours, "reference": reference},
        {"part": "  peak memory beyond the model, and the model", "unit": "MB", "ours": peak, "reference": size},
    ]


def refinement(repeat: int) -> list[dict]:
    """PAMR of 171 masks of 112 x 112."""
    torch.manual_seed(0)
    images, masks, ours = torch.randn(1, 3, 448, 448), torch.rand(1, 171, 112, 112), PAMR()
    count = min(repeat, 3)
    row = {"part": "PAMR, 171 masks of 112 x 112", "unit": "s", "ours": seconds(lambda: ours(images, masks), count)}
    row["reference"] = seconds(lambda: plain.pamr(images, masks, ours), count)
    row["difference"] = (ours(images, masks) - plain.pamr(images, masks, ours)).abs().max().item()
    return [row]


def _trained_like(model: TCL) -> TCL:
    """Gates and texts as a trained model has them: at 0 the decoder's convolutions would not count."""
    for block in model.grounder.decoder:
        for conv in (block.conv1, block.conv2):
            conv.gate.data.fill_(0.5)
    return model


@torch.no_grad()
def masks(repeat: int) -> list[dict]:
    """Masks of one 448 x 448 crop, ViT-B/16: 171 classes with KP and PAMR, and 21 classes with KP alone."""
    model = _trained_like(build_model(_vit_b16()).eval())
    image, rows, count, refine = torch.randn(1, 3, 448, 448), [], min(repeat, 3), model.pamr
    for classes, model.pamr in ((171, refine), (21, None)):
        text = torch.randn(classes, model.clip.embed_dim)
        part = f"masks of a 448 crop, {classes} classes, KP{' + PAMR' if model.pamr else ''}"
        expected = plain.masks(model, image, text)
        reference = seconds(lambda text=text: plain.masks(model, image, text), count)
        for kind in (torch.float32, torch.bfloat16):

            def ours(text: Tensor = text, kind: torch.dtype = kind) -> Tensor:
                with torch.autocast("cpu", kind, enabled=kind is not torch.float32):
                    return model.crop_masks(*model.encode_crops(image), text)

            row = {"part": f"{part}, {str(kind).split('.')[1]}", "unit": "s", "ours": seconds(ours, count)}
            rows.append({**row, "reference": reference, "difference": (ours() - expected).abs().max().item()})
    return rows


def training(repeat: int) -> list[dict]:
    """A training step, forward and backward, ViT-B/16, 8 pairs of 224 x 224, first stage."""
    model = _trained_like(build_model(_vit_b16()).train())
    images, tokens = torch.randn(8, 3, 224, 224), torch.randint(1, 49000, (8, 77))
    noise, count = torch.rand(8, 1, 56, 56).clamp(1e-6, 1 - 1e-6), min(repeat, 3)

    def step(losses: Callable[..., dict], kind: torch.dtype) -> dict[str, Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", kind, enabled=kind is not torch.float32):
            found = losses(images, tokens, noise)
        sum(found.values()).backward()
        return found

    def reference() -> dict[str, Tensor]:
        return step(lambda *inputs: plain.losses(model, *inputs), torch.float32)

    expected, time_of_reference, rows = reference(), seconds(reference, count), []
    for kind in (torch.float32, torch.bfloat16):
        found = step(model.compute_losses, kind)
        time_of_ours = seconds(lambda kind=kind: step(model.compute_losses, kind), count)
        row = {"part": f"training step, 8 pairs, {str(kind).split('.')[1]}", "unit": "s", "ours": time_of_ours}
        difference = max(abs(found[name] - expected[name]).item() for name in expected)
        rows.append({**row, "reference": time_of_reference, "difference": difference})
    return rows


def _peak_of_pairs(texts: int, dense: bool) -> tuple[float, float]:
    """Peak memory in MB of forward and backward over all pairs of 64 images and N texts, and the gradient's norm."""
    torch.manual_seed(0)
    embedding, text = torch.randn(64, 512, 56, 56, requires_grad=True), torch.randn(texts, 512)
    sim2mask = Sim2Mask()

    def run() -> None:
        if dense:
            found = plain.pair_losses(embedding, text, sim2mask.w, sim2mask.b)
            total = found["similarity"].mean() + found["area"].mean() + found["variation"]
        else:
            found = pair_statistics(embedding, text, sim2mask, ("similarity", "area", "mask_variation"))
            total = sum(value.mean() for value in found.values())
        total.backward()

    return peak_memory(run), embedding.grad.norm().item()


def pairs(repeat: int) -> list[dict]:
    """Memory of the losses over all pairs: 64 images, N texts, 512 x 56 x 56."""
    rows = []
    for texts in (256, 1024, 4096):
        results = []
        for dense in (False, True) if texts <= 1024 else (False,):
            with get_context("spawn").Pool(1) as pool:
                results.append(pool.apply(_peak_of_pairs, (texts, dense)))
        row = {"part": f"losses over 64 x {texts} pairs: peak memory", "unit": "MB", "ours": results[0][0]}
        if len(results) > 1:
            row |= {"reference": results[1][0], "difference": abs(results[0][1] / results[1][1] - 1)}
        rows.append(row)
    return rows


def _small_world(*options: object) -> CfgNode:
    cfg = get_cfg()
    add_tcl_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/shapes/tcl.yaml"))
    cfg.merge_from_list(["VIS_PERIOD", 0, *options])
    return cfg


def _peak_of_batch(batch: int, micro: int) -> float:
    model = build_model(_small_world("SOLVER.MICRO_BATCH", micro)).train()
    images, tokens = torch.randn(batch, 3, 48, 48), torch.randint(1, 2000, (batch, 32))
    return peak_memory(lambda: sum(model.compute_losses(images, tokens).values()).backward())


def micro_batches(repeat: int) -> list[dict]:
    """Memory of a step with 1024 pairs in micro-batches of 16, against one of 16 pairs: small world."""
    peaks = []
    for batch, micro in ((1024, 16), (16, 0)):
        with get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(_peak_of_batch, (batch, micro)))
    part = "1024 pairs by 16, and 16 pairs: peak memory"
    return [{"part": part, "unit": "MB", "ours": peaks[0], "reference": peaks[1]}]


def one_pass(repeat: int) -> list[dict]:
    """Two benchmarks of the same images, evaluated in one pass and in two: small world, with PAMR."""
    for name in ("detectron2", "tcl_d2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    names = ("shapes_val", "shapes_objects_val")
    with TemporaryDirectory() as folder:
        cfg = _small_world("OUTPUT_DIR", folder, "TEST.ZERO_SHOT.MAX_IMAGES", 30, "DATALOADER.NUM_WORKERS", 0)
        model, results = build_model(cfg).eval(), {}

        def test(*data: str) -> None:
            cfg.DATASETS.TEST = data
            results.update(Trainer.test(cfg, model))

        ours = seconds(lambda: test(*names), 3)
        together = {name: results[name]["sem_seg"]["mIoU"] for name in names}
        reference = seconds(lambda: [test(name) for name in names], 3)
        difference = max(abs(together[name] - results[name]["sem_seg"]["mIoU"]) for name in names)
    row = {"part": "two benchmarks of the same images", "unit": "s", "ours": ours, "reference": reference}
    return [{**row, "difference": difference}]


def loader(repeat: int) -> list[dict]:
    """The training mapper alone on one core: images of 512 pixels a side as JPEG, full augmentation of the recipe."""
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (32, 32, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    mapper = ImageTextDatasetMapper(_vit_b16(), is_train=True)
    sample = {"image_bytes": buffer.getvalue(), "captions": ["a photo of squares"], "key": "x"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = seconds(lambda: mapper(sample), 50)
    decode = seconds(lambda: read_image(sample["image_bytes"], "x"), 50)
    torch.set_num_threads(threads)
    return [
        {"part": "loading a pair, and its decoding alone", "unit": "ms", "ours": 1e3 * whole, "reference": 1e3 * decode}
    ]


BENCHMARKS = {
    "refinement": refinement,
    "masks": masks,
    "training": training,
    "pairs": pairs,
    "micro_batches": micro_batches,
    "one_pass": one_pass,
    "loader": loader,
    "scoring": scoring,
    "large_vocabulary": large_vocabulary,
    "loading": loading,
}


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
