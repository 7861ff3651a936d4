#!/usr/bin/env python
"""Measure parts of the project against plain references (dev/plain.py) in one run: medians, ratios, differences.

python dev/benchmark.py                          # all
python dev/benchmark.py scoring --repeat 50      # one part
"""

import argparse
import copy
import io
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import plain
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from measure import (
    DEVICE,
    cpu_time_call,
    in_new_process,
    low_precisions,
    machine,
    peak_memory,
    seconds,
    trained_like,
    vit_b16,
)
from neighbours import neighbours
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from whole_benchmark import evaluation

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer, to_official
from tcl_d2.commands.options.prepare import shapes as shapes_options
from tcl_d2.commands.options.segment import argument_parser
from tcl_d2.commands.prepare import shapes
from tcl_d2.commands.result_folder import Source
from tcl_d2.commands.segment import segment_files
from tcl_d2.data import ImageTextDatasetMapper, register_benchmark
from tcl_d2.data.shapes import OBJECTS, draw_scene
from tcl_d2.engine import Trainer
from tcl_d2.engine.optimizer import FullModelClippedAdamW
from tcl_d2.evaluation import ZeroShotSemSegEvaluator
from tcl_d2.evaluation.together import ModelsInTurn, Turn
from tcl_d2.modeling import PAMR, DenseHead, Sim2Mask, ZeroShotSegmentor, build_dense_head
from tcl_d2.modeling.reco.index import ImageIndex, ImageRecord, part_path, save_part
from tcl_d2.modeling.tcl.mask_statistics import pair_statistics
from tcl_d2.predictor import TCLPredictor
from tcl_d2.utils.files import replacing
from tcl_d2.utils.images import read_image
from tcl_d2.utils.memory import process_peak
from tcl_d2.words.words import Words

ROOT = Path(__file__).resolve().parent.parent
_UNITS = {"s": 1.0, "ms": 1e3}


def compare(part: str, unit: str, ours: Callable, reference: Callable, repeat: int, difference: float) -> dict:
    """Return a row of the table: the times of ours and of the reference."""
    ours, reference = (value * _UNITS[unit] for value in seconds(ours, reference, repeat=repeat))
    return {"part": part, "unit": unit, "ours": ours, "reference": reference, "difference": difference}


def scoring(repeat: int) -> list[dict]:
    """Measure the scoring of a 171-class 640 x 480 prediction, from the label file to the confusion matrix.

    The reference is numpy's two-dimensional histogram of the pixels that count, of a label that is read before.
    """
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        # Build an evaluator of one image
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

        # Score it
        prediction = torch.from_numpy(rng.integers(0, 171, label.shape))
        inputs, outputs = [{"file_name": str(path)}], [{"sem_seg_labels": prediction}]

        def histogram() -> np.ndarray:
            valid = label != 255
            edges = np.arange(172)
            return np.histogram2d(label[valid], prediction.numpy()[valid], bins=(edges, edges))[0]

        evaluator.process(inputs, outputs)
        difference = float(np.abs(evaluator.statistics["confusion_matrix"][:, :-1] - histogram()).max())
        score = partial(evaluator.process, inputs, outputs)
        row = compare("scoring, 171 x 480 x 640", "ms", score, histogram, repeat, difference)

    # The argmax of its scores, for comparison
    scores = torch.rand(171, *label.shape)
    (argmax,) = seconds(lambda: scores.argmax(0), repeat=repeat)
    return [row, {"part": "  the argmax of its scores, for comparison", "unit": "ms", "ours": 1e3 * argmax}]


def _peak_memory(labels_only: bool) -> tuple[float, np.ndarray]:
    """Segment a 640 x 480 image into 1,203 classes; return the peak of memory in MB beyond the model, and labels."""
    torch.manual_seed(0)
    model = build_model(vit_b16()).eval()
    model.set_text_embeddings(torch.randn(1203, model.clip.embed_dim))
    image = torch.randint(0, 256, (3, 448, 597))
    inputs = {"image": image, "height": 480, "width": 640, "labels_only": labels_only}

    outputs = []
    peak = peak_memory(lambda: outputs.extend(model([inputs])))
    labels = outputs[0]["sem_seg_labels"] if labels_only else outputs[0]["sem_seg"].argmax(0)
    return peak, labels.cpu().numpy()


def large_vocabulary(repeat: int) -> list[dict]:
    """Measure the memory of 1,203 classes (ViT-B/16, random weights): labels alone against all scores at full size."""
    peak, labels = in_new_process(_peak_memory, True)
    peak_of_scores, labels_of_scores = in_new_process(_peak_memory, False)
    difference = float((labels != labels_of_scores).mean())
    part = "1,203 classes, 480 x 640: peak memory"
    return [{"part": part, "unit": "MB", "ours": peak, "reference": peak_of_scores, "difference": difference}]


_OFFICIAL = ("MODEL.CLIP.NAME", "ViT-B-16-quickgelu")  # the CLIP of official checkpoints


def _peak_of_loading(path: str) -> float:
    """Return the peak of memory, in MB beyond the model, of loading a checkpoint into it."""
    model = build_model(vit_b16(*_OFFICIAL))
    return peak_memory(lambda: TCLCheckpointer(model).load(path))


def loading(repeat: int) -> list[dict]:
    """Measure the loading of an official checkpoint of ViT-B/16 size, against torch.load of the file alone."""
    logging.getLogger().setLevel(logging.WARNING)
    model = build_model(vit_b16(*_OFFICIAL))
    size = sum(value.nbytes for value in model.state_dict().values()) / 2**20

    with TemporaryDirectory() as folder:
        path = f"{folder}/tcl.pth"
        torch.save({"model": to_official(model.state_dict(), freeze=11)}, path)
        ours, reference = seconds(
            lambda: TCLCheckpointer(model).load(path),
            lambda: torch.load(path, map_location="cpu", weights_only=True),
            repeat=min(repeat, 5),
        )
        peak = in_new_process(_peak_of_loading, path)

    part = f"loading an official checkpoint, {size:.0f} MB"
    return [
        {"part": part, "unit": "s", "ours": ours, "reference": reference},
        {"part": "  peak memory beyond the model, and the model", "unit": "MB", "ours": peak, "reference": size},
    ]


def refinement(repeat: int) -> list[dict]:
    """Measure PAMR of 171 masks of 112 x 112."""
    torch.manual_seed(0)
    images, masks = torch.randn(1, 3, 448, 448, device=DEVICE), torch.rand(1, 171, 112, 112, device=DEVICE)
    ours = PAMR()
    difference = (ours(images, masks) - plain.pamr(images, masks, ours)).abs().max().item()
    calls = partial(ours, images, masks), partial(plain.pamr, images, masks, ours)
    return [compare("PAMR, 171 masks of 112 x 112", "s", *calls, min(repeat, 3), difference)]


@torch.no_grad()
def masks(repeat: int) -> list[dict]:
    """Measure the masks of a 448 x 448 crop, ViT-B/16: 171 classes with KP and PAMR, and 21 classes with KP alone."""
    torch.manual_seed(0)
    model = trained_like(build_model(vit_b16()).eval())
    image = torch.randn(1, 3, 448, 448, device=DEVICE)
    rows = []
    for num_classes in (171, 21):
        if num_classes == 21:
            model.refiner = None
        text = torch.randn(num_classes, model.clip.embed_dim, device=DEVICE)
        reference = partial(plain.masks, model, image, text)

        for dtype in (torch.float32, *low_precisions()):
            ours = partial(_crop_masks, model, image, text, dtype)
            methods = "KP + PAMR" if model.refiner else "KP"
            part = f"masks of a 448 crop, {num_classes} classes, {methods}, {_short(dtype)}"
            difference = (ours() - reference()).abs().max().item()
            rows.append(compare(part, "s", ours, reference, min(repeat, 3), difference))
    return rows


def _crop_masks(model: ZeroShotSegmentor, image: Tensor, text: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(DEVICE, dtype, enabled=dtype is not torch.float32):
        return model.crop_masks(*model.encode_crops(image), text)


@torch.no_grad()
def heads(repeat: int) -> list[dict]:
    """Measure the scores of a 448 x 448 crop for 21 classes under each dense head, ViT-B/16, against MaskCLIP's.

    ProxyCLIP's attention is of a ViT-B/8 besides, as published.
    """
    torch.manual_seed(0)
    cfg = vit_b16()
    cfg.MODEL.META_ARCHITECTURE = "DenseCLIP"
    cfg.MODEL.DENSE_CLIP.PROXY.PRETRAINED = cfg.MODEL.DENSE_CLIP.DINOISER.WEIGHTS = ""
    cfg.TEST.ZERO_SHOT.TEXT_CACHE = ""
    cfg.TEST.ZERO_SHOT.REFINE = "none"
    model = build_model(cfg).eval()
    image = torch.randn(1, 3, 448, 448, device=DEVICE)
    text = torch.randn(21, model.clip.embed_dim, device=DEVICE)

    def predict(head: DenseHead) -> Tensor:
        model.head = head
        return _crop_masks(model, image, text, torch.float32)

    rows, reference = [], build_dense_head("maskclip", cfg)
    for name in ("clip", "sclip", "clearclip", "naclip", "proxyclip", "clip_dinoiser"):
        head = build_dense_head(name, cfg).to(DEVICE)
        calls = partial(predict, head), partial(predict, reference)
        rows.append(compare(f"{name}, and MaskCLIP: a 448 crop, 21 classes", "s", *calls, min(repeat, 5), float("nan")))
    return rows


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def training(repeat: int) -> list[dict]:
    """Measure a training step, forward and backward, ViT-B/16, 2 and 8 pairs of 224 x 224, first stage."""
    return [*_time_steps(2, repeat), *_time_steps(8, repeat)]


def _time_steps(num_pairs: int, repeat: int) -> list[dict]:
    """Measure a training step in each precision."""
    torch.manual_seed(0)
    model = trained_like(build_model(vit_b16()).train())
    images = torch.randn(num_pairs, 3, 224, 224, device=DEVICE)
    tokens = torch.randint(1, 49000, (num_pairs, 77), device=DEVICE)
    noise = torch.rand(num_pairs, 1, 56, 56, device=DEVICE).clamp(1e-6, 1 - 1e-6)

    def step(compute_losses: Callable[..., dict], dtype: torch.dtype) -> dict[str, Tensor]:
        model.zero_grad()
        with torch.autocast(DEVICE, dtype, enabled=dtype is not torch.float32):
            losses = compute_losses(images, tokens, noise)
        sum(losses.values()).backward()
        return losses

    reference = partial(step, partial(plain.losses, model), torch.float32)
    rows = []
    for dtype in (torch.float32, *low_precisions()):
        ours = partial(step, model.compute_losses, dtype)
        losses, expected = ours(), reference()
        difference = max(abs(losses[name] - expected[name]).item() for name in expected)
        part = f"training step, {num_pairs} pairs, {_short(dtype)}"
        rows.append(compare(part, "s", ours, reference, min(repeat, 3), difference))
    return rows


def settings(repeat: int) -> list[dict]:
    """Measure what torch offers besides, ViT-B/16: channels_last, torch.compile, the fused AdamW; time and memory.

    The reference is the same without it. What helps here does not by itself help on another machine.
    """
    torch.manual_seed(0)
    crop, text = torch.randn(1, 3, 448, 448, device=DEVICE), torch.randn(21, 512, device=DEVICE)
    precision = low_precisions()[0] if low_precisions() else torch.float32
    plain_model = trained_like(build_model(vit_b16()).eval())
    channels_last = copy.deepcopy(plain_model).to(memory_format=torch.channels_last)
    compiled = copy.deepcopy(plain_model)
    compiled.clip.forward_blocks = torch.compile(compiled.clip.forward_blocks)
    compiled.grounder = torch.compile(compiled.grounder)

    # The masks of a crop
    rows = []
    with torch.no_grad():
        reference = partial(_crop_masks, plain_model, crop, text, precision)
        expected = reference()
        for name, model in (("channels_last", channels_last), ("torch.compile", compiled)):
            ours = partial(_crop_masks, model, crop, text, precision)
            difference = (ours() - expected).abs().max().item()
            part = f"{name}: masks of a 448 crop, {_short(precision)}"
            rows.append(compare(part, "s", ours, reference, min(repeat, 5), difference))
            if DEVICE == "cuda":  # a process on a CPU reuses what it has freed, so that its peak says nothing
                peaks = {"ours": peak_memory(ours), "reference": peak_memory(reference)}
                rows.append({"part": "  peak memory", "unit": "MB", **peaks})

    # The optimizer's step
    trained = plain_model.train().grounder.parameters()
    weights = [torch.randn_like(p) for p in trained]

    def stepper(fused: bool) -> Callable[[], object]:
        parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return FullModelClippedAdamW(parameters, max_norm=5.0, fused=fused).step

    calls = stepper(True), stepper(False)
    rows.append(compare("fused AdamW: a step", "ms", *calls, min(repeat, 5), float("nan")))
    return rows


def _peak_of_pairs(texts: int, dense: bool) -> tuple[float, float]:
    """Run the losses of all pairs of 64 images and N texts; return the peak of memory in MB and the gradient's norm."""
    torch.manual_seed(0)
    embedding = torch.randn(64, 512, 56, 56, device=DEVICE, requires_grad=True)
    text, sim2mask = torch.randn(texts, 512, device=DEVICE), Sim2Mask().to(DEVICE)

    def run() -> None:
        if dense:
            statistics = plain.pair_losses(embedding, text, sim2mask.w, sim2mask.b)
        else:
            statistics = pair_statistics(embedding, text, sim2mask, ("similarity", "area", "mask_tv"))
        sum(value.mean() for value in statistics.values()).backward()

    return peak_memory(run), embedding.grad.norm().item()


def pairs(repeat: int) -> list[dict]:
    """Measure the memory of the losses over all pairs: 64 images, N texts, 512 x 56 x 56."""
    rows = []
    for texts in (256, 1024, 4096):
        peak, norm = in_new_process(_peak_of_pairs, texts, False)
        row = {"part": f"losses over 64 x {texts} pairs: peak memory", "unit": "MB", "ours": peak}
        if texts <= 1024:  # more dense masks take too much memory
            reference, expected_norm = in_new_process(_peak_of_pairs, texts, True)
            row |= {"reference": reference, "difference": abs(norm / expected_norm - 1)}
        rows.append(row)
    return rows


def _small_world(*options: object) -> CfgNode:
    return load_config(ROOT / "configs/shapes/tcl.yaml", ["MODEL.DEVICE", DEVICE, "VIS_PERIOD", 0, *options])


def _peak_of_batch(batch_size: int, micro_batch_size: int) -> float:
    """Return the peak of memory in MB of a training step."""
    model = build_model(_small_world("SOLVER.IMS_PER_MICRO_BATCH", micro_batch_size)).train()
    images = torch.randn(batch_size, 3, 48, 48, device=DEVICE)
    tokens = torch.randint(1, 2000, (batch_size, 32), device=DEVICE)
    return peak_memory(lambda: sum(model.compute_losses(images, tokens).values()).backward())


def micro_batches(repeat: int) -> list[dict]:
    """Measure the memory of a step with 1024 pairs in micro-batches of 16, against a step of 16 pairs: small world."""
    peak, reference = in_new_process(_peak_of_batch, 1024, 16), in_new_process(_peak_of_batch, 16, 0)
    part = "1024 pairs by 16, and 16 pairs: peak memory"
    return [{"part": part, "unit": "MB", "ours": peak, "reference": reference}]


def one_pass(repeat: int) -> list[dict]:
    """Measure the evaluation of two benchmarks of the same images in one pass, against two passes: small world."""
    for name in ("detectron2", "tcl_d2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    names = ("shapes_val", "shapes_objects_val")
    with TemporaryDirectory() as folder, patch.dict(os.environ, DETECTRON2_DATASETS=folder):
        # Draw 30 images
        numbers = ["--train", "1", "--labeled", "1", "--val", "30"]
        shapes.main(shapes_options.argument_parser().parse_args(["--root", f"{folder}/shapes", *numbers]))

        # Evaluate them
        cfg = _small_world("OUTPUT_DIR", folder, "DATALOADER.NUM_WORKERS", 0)
        model = build_model(cfg).eval()

        def evaluate(*data: str) -> dict[str, float]:
            cfg.DATASETS.TEST = data
            results = Trainer.test(cfg, model)
            return {name: results[name]["sem_seg"]["mIoU"] for name in data}

        def evaluate_each() -> dict[str, float]:
            return {**evaluate(names[0]), **evaluate(names[1])}

        together, apart = evaluate(*names), evaluate_each()
        difference = max(abs(together[name] - apart[name]) for name in names)
        calls = partial(evaluate, *names), evaluate_each
        return [compare("two benchmarks of the same images", "s", *calls, min(repeat, 3), difference)]


_HEADS = ("clip", "maskclip", "sclip", "clearclip", "naclip")
_SWEEP = tuple(product(("none", "pamr"), (0.0, 0.3), (0.2, 0.4, 0.6)))  # refiners, shares of CLIP's masks, backgrounds


def _methods(names: Sequence[str]) -> list[ZeroShotSegmentor]:
    """Build dense heads and TCL by name, ViT-B/16, on one CLIP of random weights, for 21 classes."""
    models = []
    for name in names:
        options = ["TEST.ZERO_SHOT.TEXT_CACHE", "", "TEST.ZERO_SHOT.TEMPLATES", ["{}"], "TEST.ZERO_SHOT.REFINE", "none"]
        if name != "tcl":
            options += ["MODEL.META_ARCHITECTURE", "DenseCLIP", "MODEL.DENSE_CLIP.HEAD", name]
        torch.manual_seed(0)
        model = build_model(vit_b16(*options)).eval()
        for other in models:
            model.share_weights(other)
        model.set_vocabulary([f"class {k}" for k in range(21)])
        models.append(trained_like(model) if name == "tcl" else model)
    return models


@torch.no_grad()
def _segment_in_turn(models: Sequence[ZeroShotSegmentor], share: bool) -> list[np.ndarray]:
    """Return each model's labels of a 448 x 448 image, a window, in one pass or one by one."""
    image = torch.randint(0, 256, (3, 448, 448), generator=torch.Generator().manual_seed(0))
    inputs = [{"file_name": "image", "image": image, "labels_only": True}]
    if share:
        outputs = list(ModelsInTurn([Turn(model, DatasetEvaluators([]), {"image"}, {}) for model in models])(inputs))
    else:
        outputs = [model(inputs) for model in models]
    return [output["sem_seg_labels"].cpu().numpy() for (output,) in outputs]


def _peak_of_methods(names: Sequence[str]) -> float:
    """Return the peak of memory in MB of a process that builds methods and segments an image in one pass."""
    _segment_in_turn(_methods(names), True)
    return process_peak()


def methods(repeat: int) -> list[dict]:
    """Measure methods on one CLIP in one pass against one by one: ViT-B/16, a 448 window, 21 words; CPU time.

    The difference is the largest share of pixels with other labels.
    """
    rows = []
    for names, part in ((_HEADS, "five dense heads"), ((*_HEADS, "tcl"), "five dense heads and TCL")):
        models = _methods(names)
        calls = [partial(_segment_in_turn, models, share) for share in (True, False)]
        ours, reference = seconds(*calls, repeat=min(repeat, 3), time_call=cpu_time_call)
        difference = max(float((labels != expected).mean()) for labels, expected in zip(calls[0](), calls[1]()))
        row = {"part": f"{part}: a window", "unit": "s", "ours": ours, "reference": reference}
        rows.append({**row, "difference": difference})
        del models, calls

    peaks = [in_new_process(_peak_of_methods, names) for names in ((*_HEADS, "tcl"), ("tcl",))]
    row = {"part": "  peak memory of the process, and of TCL's alone", "unit": "MB"}
    return [*rows, {**row, "ours": peaks[0], "reference": peaks[1]}]


@torch.no_grad()
def sweep(repeat: int) -> list[dict]:
    """Measure 12 settings of TCL in one pass, as tools/analyze.py does, against one by one; CPU time.

    They are 2 refiners, 2 shares of CLIP's own masks and 3 background scores: ViT-B/16, a 448 window, 21 words.
    """
    sys.path.append(str(ROOT / "tools"))
    from analyze import build_refiners, labels_by_threshold

    cfg = vit_b16("TEST.ZERO_SHOT.TEXT_CACHE", "", "TEST.ZERO_SHOT.TEMPLATES", ["{}"])
    model, refiners = trained_like(build_model(cfg).eval()), build_refiners(cfg, ["none", "pamr"])
    model.set_vocabulary([f"class {k}" for k in range(21)], background=True)
    inputs = {"image": torch.randint(0, 256, (3, 448, 448), dtype=torch.uint8)}

    def in_one_pass() -> list[np.ndarray]:
        labels = []
        with model.clip.results.keep():
            for model.refiner, model.kp_weight in product(refiners.values(), (0.0, 0.3)):
                labels += labels_by_threshold(model, inputs, (0.2, 0.4, 0.6))
        return labels

    def one_by_one() -> list[np.ndarray]:
        labels = []
        for refiner, model.kp_weight, model.background_score in _SWEEP:
            model.refiner = refiners[refiner]
            labels.append(model([{**inputs, "labels_only": True}])[0]["sem_seg_labels"].cpu().numpy())
        return labels

    difference = max(float((ours != expected).mean()) for ours, expected in zip(in_one_pass(), one_by_one()))
    ours, reference = seconds(in_one_pass, one_by_one, repeat=min(repeat, 3), time_call=cpu_time_call)
    row = {"part": "12 settings of TCL: a window", "unit": "s", "ours": ours, "reference": reference}
    return [{**row, "difference": difference}]


def _time_files(part: str, predictor: TCLPredictor, scenes: Sequence[np.ndarray], repeat: int) -> dict:
    """Time files that are read, segmented in batches and written with overlays, against the same one at a time.

    The difference is the largest share of an image's pixels that have other labels.
    """
    with TemporaryDirectory() as temporary:
        sources = [Source(Path(temporary, f"{index}.png"), str(index), {}) for index in range(len(scenes))]
        for source, scene in zip(sources, scenes):
            Image.fromarray(scene).save(source.path)
        folders = Path(temporary, "ours"), Path(temporary, "reference")
        args = argument_parser().parse_args([temporary, "--classes", "any", "--output", str(folders[0])])

        def segment_in_batches() -> None:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                segment_files(predictor, args, sources, Words.read(OBJECTS, True))

        def segment_in_turn() -> None:
            for source in sources:
                predictor(source.path, OBJECTS, True, labels_only=True).save(folders[1], source.name)

        segment_in_batches()
        segment_in_turn()
        names = [f"{source.name}_labels.png" for source in sources]
        labels = [[np.asarray(Image.open(folder / name)) for name in names] for folder in folders]
        difference = max(float((ours != expected).mean()) for ours, expected in zip(*labels))
        return compare(part, "s", segment_in_batches, segment_in_turn, min(repeat, 5), difference)


def throughput(repeat: int) -> list[dict]:
    """Measure files that are segmented in batches, read and written in threads, against one at a time."""
    scenes = [draw_scene(seed=7, index=index, size=96).image for index in range(56)]
    small_world = TCLPredictor("shapes/trained.yaml", "MODEL.DEVICE", DEVICE)
    rows = [_time_files("56 files, small world", small_world, scenes, repeat)]

    photos = [scene.repeat(5, 0).repeat(5, 1)[:, :400] for scene in scenes[:4]]
    large = TCLPredictor(vit_b16(), "TEST.ZERO_SHOT.TEXT_CACHE", "")
    return [*rows, _time_files("4 files of 480 x 400, ViT-B/16", large, photos, repeat)]


def loader(repeat: int) -> list[dict]:
    """Measure the training mapper on one core: JPEG images of 512 pixels a side, full augmentation of the recipe."""
    # Make a sample
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (32, 32, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    mapper = ImageTextDatasetMapper(vit_b16(), is_train=True)
    sample = {"image_bytes": buffer.getvalue(), "captions": ["a photo of squares"], "key": "x"}

    # Load it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    calls = partial(mapper, sample), partial(read_image, sample["image_bytes"], "x")
    whole, decode = seconds(*calls, repeat=50)
    torch.set_num_threads(threads)
    part = "loading a pair, and its decoding alone"
    return [{"part": part, "unit": "ms", "ours": 1e3 * whole, "reference": 1e3 * decode}]


def _peak_of_retrieval(folder: str, held: bool) -> tuple[float, list, list[float]]:
    """Retrieve 50 images for each of 21 texts, from the index or, `held`, from all its features in memory.

    Returns:
        the peak of memory in MB, the images' first bytes, and the seconds of further calls.
    """
    text = torch.nn.functional.normalize(torch.randn(21, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    index = ImageIndex(Path(folder), "clip")
    features = torch.cat([chunk.float() for chunk in index.iterate_features()]) if held else torch.empty(0)

    def retrieve() -> list[list[int]]:
        if held:
            return (text @ features.T).topk(50).indices.tolist()
        return [[record.start for record in records] for records in index.search(text, 50)]

    peak = peak_memory(retrieve) + features.nbytes / 2**20
    return peak, retrieve(), seconds(retrieve, repeat=3)


def retrieval(repeat: int) -> list[dict]:
    """Measure ReCo's retrieval: 21 texts in an index of 1.28 million images, against all features held in fp32."""
    count, per_part = 1_280_000, 10_000
    with TemporaryDirectory() as folder:
        # Write an index of images that do not exist, on which an image's first byte is its number
        metadata = {"clip": "clip", "archive": "archive"}
        for number in range(count // per_part):
            features = torch.nn.functional.normalize(torch.randn(per_part, 512), dim=1)
            records = [ImageRecord("archive.tar", number * per_part + row, 1) for row in range(per_part)]
            save_part(part_path(Path(folder), number, count // per_part), records, features, metadata)

        peak, images, times = in_new_process(_peak_of_retrieval, folder, False)
        held_peak, expected, held_times = in_new_process(_peak_of_retrieval, folder, True)

    difference = sum(set(ours) != set(reference) for ours, reference in zip(images, expected))
    part = "retrieval of 21 x 50 of 1.28 million images"
    rows = [{"part": part, "unit": "s", "ours": times[0], "reference": held_times[0], "difference": difference}]
    return [*rows, {"part": "  peak memory", "unit": "MB", "ours": peak, "reference": held_peak}]


def _cpu_seconds(command: Sequence[str]) -> float:
    """Return the seconds of CPU of a new Python process, which may end with argparse's status for wrong options."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode not in (0, 2):
        raise RuntimeError(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start(repeat: int) -> list[dict]:
    """Measure a command's whole process, in seconds of CPU: help, a wrong option, a small picture by torch and ONNX."""
    with TemporaryDirectory() as folder:
        Image.fromarray(draw_scene(7, 1).image).save(Path(folder, "photo.png"))
        command = ["-m", "tcl_d2", "segment"]
        files = [f"{folder}/photo.png", "--output", f"{folder}/out"]
        exported = f"{folder}/model.onnx"
        _cpu_seconds(["-m", "tcl_d2", "export", exported, "--classes", "brick, grass"])
        commands = {
            "import torch": ["-c", "import torch"],
            "import torch, open_clip": ["-c", "import torch, open_clip"],
            "segment --help": [*command, "--help"],
            "segment --mistyped": [*command, "--mistyped"],
            "segment, a small picture": [*command, *files, "--classes", "brick, grass"],
            "segment --onnx, the same": [*command, *files, "--onnx", exported],
        }
        rounds = [[_cpu_seconds(words) for words in commands.values()] for _ in range(max(3, repeat // 4))]

    times = {name: statistics.median(column) for name, column in zip(commands, zip(*rounds))}
    references = {"segment, a small picture": "import torch, open_clip"}
    references["segment --onnx, the same"] = "segment, a small picture"
    return [
        {"part": name, "unit": "s", "ours": times[name], "reference": times[references.get(name, "import torch")]}
        for name in list(commands)[2:]
    ]


BENCHMARKS = {
    "refinement": refinement,
    "masks": masks,
    "heads": heads,
    "training": training,
    "settings": settings,
    "pairs": pairs,
    "micro_batches": micro_batches,
    "one_pass": one_pass,
    "evaluation": evaluation,
    "methods": methods,
    "sweep": sweep,
    "throughput": throughput,
    "loader": loader,
    "scoring": scoring,
    "large_vocabulary": large_vocabulary,
    "loading": loading,
    "retrieval": retrieval,
    "start": start,
    "neighbours": neighbours,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"parts to measure, of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--repeat", type=int, default=20, help="calls of each function")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark.json"))
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")

    # Measure; a part that fails takes no other with it, and what is measured is saved at once
    rows, failed = [], []
    for name in args.names or BENCHMARKS:
        print(f"{time.strftime('%X')} {name}: {BENCHMARKS[name].__doc__.splitlines()[0]}", flush=True)
        try:
            rows += BENCHMARKS[name](args.repeat)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        for row in rows:
            if "reference" in row:
                row["ratio"] = row["reference"] / row["ours"]
        with replacing(args.output) as unfinished:
            unfinished.write_text(json.dumps({"torch": torch.__version__, "machine": machine(), "rows": rows}))

    header = ("part", "unit", "ours", "reference", "ratio", "difference")
    print(tabulate([[row.get(key) for key in header] for row in rows], header, "pipe", floatfmt=".3g"))
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
