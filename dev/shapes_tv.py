#!/usr/bin/env python
"""Find out what total variation and the area losses do on the small world: train with several weights, and measure.

Trainings are shared with dev/shapes_ablations.py where the output is the same.

    python dev/shapes_tv.py --iterations 60 --seeds 1 2 3 --jobs 2
"""

import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from shapes_ablations import LIKE_VOC20, ROOT, WITHOUT_PAMR, argument_parser, cell, train_all
from tabulate import tabulate
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.data.shapes import GROUNDS, OBJECTS, draw_scene
from tcl_d2.engine import Trainer
from tcl_d2.evaluation import ZeroShotSemSegEvaluator
from tcl_d2.evaluation.confusion import compute_metrics, confusion_matrix
from tcl_d2.modeling import TCL
from tcl_d2.modeling.tcl.mask_statistics import pair_statistics, total_variation

IMAGE_TV, MASK_TV = "MODEL.TCL.LOSS_WEIGHT.TV_IMAGE", "MODEL.TCL.LOSS_WEIGHT.TV_MASK"
RECIPES = {  # folder -> config below configs/shapes, values over it
    "tcl": ("tcl.yaml", []),
    "without_tv": ("ablations/without_tv.yaml", []),
    "tv_0.1": ("tcl.yaml", [IMAGE_TV, "0.1", MASK_TV, "0.1"]),
    "tv_0.3": ("tcl.yaml", [IMAGE_TV, "0.3", MASK_TV, "0.3"]),
    "without_image_tv": ("tcl.yaml", [IMAGE_TV, "0.0"]),
    "without_mask_tv": ("tcl.yaml", [MASK_TV, "0.0"]),
    "image_and_feature_level": ("ablations/image_and_feature_level.yaml", []),
}
DIGITS = {"largest gate": 3, "image TV": 3}  # of the others 1
BAND = 4  # pixels on each side of an edge, half a patch


class EdgeEvaluator(ZeroShotSemSegEvaluator):
    """Also computes mIoU of the pixels near the edges of the labels, and of the others."""

    def empty_statistics(self) -> dict[str, np.ndarray]:
        statistics = super().empty_statistics()
        return {**statistics, "near_edges": np.zeros_like(statistics["confusion_matrix"])}

    def update_statistics(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        super().update_statistics(prediction, label)
        num_classes = len(self.class_names)
        near = label.masked_fill(~near_edges(label.float(), BAND), num_classes)
        self.statistics["near_edges"] += confusion_matrix(prediction, near, num_classes).numpy()

    def compute_metrics(self, statistics: dict[str, np.ndarray]) -> dict[str, float]:
        near, pixels = statistics["near_edges"], statistics["confusion_matrix"]
        return {
            **super().compute_metrics(statistics),
            "near edges": compute_metrics(near, self.class_names)["mIoU"],
            "inside": compute_metrics(pixels - near, self.class_names)["mIoU"],
        }


def near_edges(label: torch.Tensor, distance: int) -> torch.Tensor:
    """Return where another label is within so many pixels, in rows and columns: float [H, W] -> bool [H, W]."""

    def largest_near(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x[None, None], 2 * distance + 1, stride=1, padding=distance)[0, 0]

    return largest_near(label) != -largest_near(-label)


def measure_world(count: int = 1000) -> list[tuple[str, str]]:
    """Measure the training scenes: edges at several resolutions, and what objects and named things cover."""
    shares = {48: [], 24: [], 6: []}
    objects, named = [], []
    for index in range(count):
        scene = draw_scene(0, index)
        label = torch.from_numpy(scene.label.astype(np.float32))
        for side, values in shares.items():
            step = 48 // side
            values.append(near_edges(label[step // 2 :: step, step // 2 :: step], 1).float().mean().item())
        words = [k for k, word in enumerate(OBJECTS + GROUNDS) if word in scene.caption]
        objects.append((scene.label < len(OBJECTS)).mean())
        named.append(np.isin(scene.label, words).mean())

    places = {48: "of the image", 24: "of the masks", 6: "of the patches"}
    rows = [(f"at an edge, {side} x {side} {places[side]}", values) for side, values in shares.items()]
    rows += [("of objects", objects), ("named by the caption", named)]
    return [(name, f"{100 * np.mean(values):.0f} %") for name, values in rows]


def read_scenes(model: TCL, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first training scenes as the model takes them: images [count, 3, 48, 48], tokens [count, context]."""
    scenes = [draw_scene(0, index) for index in range(count)]
    images = model.normalize_images([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes])
    return images, model.tokenizer([scene.caption for scene in scenes])


def find_gates(model: TCL) -> dict[str, torch.Tensor]:
    """Return the gates of the decoder by name, before the tanh; at 0 it is plain upsampling."""
    return {name: gate for name, gate in model.grounder.decoder.named_parameters() if name.endswith("gate")}


def measure_gates(count: int = 32, step: float = 0.01) -> list[tuple[str, float, float, float]]:
    """Measure what opens the gates of the decoder, which are 0 in the untrained model.

    Returns:
        a row a gate: its name, by how much total variation rises per unit where the gate opens to the negative and to
        the positive side, and the other losses' gradient. Their sum has its least value at a closed gate where total
        variation rises to both sides by more than this gradient.
    """
    torch.manual_seed(0)
    model = build_model(load_config(ROOT / "configs/shapes/tcl.yaml"))
    images, tokens = read_scenes(model, count)
    gates = find_gates(model)

    # The gradient of the other losses
    losses = model.compute_losses(images, tokens)
    others = sum(loss for name, loss in losses.items() if not name.startswith("loss_tv"))
    gradients = torch.autograd.grad(others, list(gates.values()))

    # The slopes of total variation
    rows, closed = [], compute_tv(model, images, tokens)
    for (name, gate), gradient in zip(gates.items(), gradients):
        slopes = []
        for value in (-step, step):
            gate.data.fill_(value)
            slopes.append((compute_tv(model, images, tokens) - closed) / step)
        gate.data.zero_()
        rows.append((name, *slopes, gradient.item()))
    return rows


@torch.no_grad()
def compute_tv(model: TCL, images: torch.Tensor, tokens: torch.Tensor) -> float:
    """Compute the two losses of total variation of a batch."""
    losses = model.compute_losses(images, tokens)
    return (losses["loss_tv_image"] + losses["loss_tv_mask"]).item()


@torch.no_grad()
def measure_model(model: TCL, count: int = 256) -> dict[str, float]:
    """Measure a trained model on training scenes.

    Returns:
        values by name:

        largest gate: of the decoder, absolute; 0 is plain upsampling.
        image TV: total variation of the pixel embeddings.
        area: share of the image under the soft masks of matching pairs, in percent.
        other area: the same of the pairs that do not match.
    """
    images, tokens = read_scenes(model, count)
    text = model.encode_text(tokens)
    embedding = model.pixel_embedding(images)
    area = 100 * pair_statistics(embedding, text, model.sim2mask, ("area",))["area"]
    positive = area.diagonal().mean().item()
    return {
        "largest gate": max(gate.tanh().abs().item() for gate in find_gates(model).values()),
        "image TV": total_variation(embedding).mean().item(),
        "area": positive,
        "other area": (area.sum().item() / count - positive) / (count - 1),
    }


def measure_run(config: str, folder: Path) -> dict[str, float]:
    """Measure a training's model.

    Returns:
        what measure_model does, and mIoU (%) by name: of all pixels, "near edges", "inside", and of all with the gates
        of the decoder closed, which is then plain upsampling.
    """
    options = ["MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", folder / "edges", *WITHOUT_PAMR]
    cfg = load_config(ROOT / "configs/shapes" / config, [*options, "DATASETS.TEST", f"('{LIKE_VOC20}',)"])
    model = build_model(cfg).eval()
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)

    # As it is, and with closed gates
    measured = measure_model(model)
    metrics = Trainer.test(cfg, model, EdgeEvaluator(cfg, LIKE_VOC20))[LIKE_VOC20]["sem_seg"]
    for gate in find_gates(model).values():
        gate.data.zero_()
    closed = Trainer.test(cfg, model)[LIKE_VOC20]["sem_seg"]["mIoU"]
    mious = {name: metrics[name] for name in ("mIoU", "near edges", "inside")}
    return {**mious, "gates closed": closed, **measured}


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    for name in ("detectron2", "tcl_d2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(tabulate(measure_world(), ("share of the pixels", "training scenes"), "pipe"), flush=True)
    titles = ("closed gate", "TV, negative side", "TV, positive side", "gradient of the others")
    print("\nHow losses change where a gate of the untrained decoder opens:\n")
    print(tabulate(measure_gates(), titles, "pipe", floatfmt="+.3f"), flush=True)

    # Train and measure
    train_all(RECIPES, args.seeds, args.iterations, args.output, args.jobs)
    lines = []
    for name, (config, _) in RECIPES.items():
        folders = [args.output / name / f"{args.iterations}_{seed}" for seed in args.seeds]
        runs = [measure_run(config, folder) for folder in folders]
        values = [cell([run[key] for run in runs], DIGITS.get(key, 1)) for key in runs[0]]
        lines.append((name, *values))
    print(f"\n{LIKE_VOC20} without PAMR, and on training scenes, after {args.iterations} iterations:\n")
    print(tabulate(lines, ("", *runs[0]), "pipe"))


if __name__ == "__main__":
    main()
