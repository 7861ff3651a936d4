#!/usr/bin/env python
"""Measure objects on the small world: box and mask AP of connected components, of TCL's masks and of the true labels.

The true labels show what connected components cannot do, whatever the masks: an object that another one cuts in two is
two, and objects of one class that touch are one. The second never happens in this world, whose scenes have each class
at most once; so all objects are also taken for one class, on all scenes and on those where no two objects touch.

    python dev/shapes_objects.py --weights output/shapes/tcl/model_final.pth other/model_final.pth
"""

import argparse
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager
from scipy import ndimage
from shapes_ablations import ROOT, cell
from tabulate import tabulate

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.data.labels import read_label
from tcl_d2.data.shapes import OBJECTS
from tcl_d2.engine import Trainer
from tcl_d2.evaluation import build_evaluator
from tcl_d2.segmentation import Segmentation

CLASSES, ONE_CLASS, APART = "shapes_instances_val", "shapes_one_class_val", "shapes_one_class_apart_val"
METRICS = [(task, metric) for task in ("bbox", "segm") for metric in ("AP", "AP50")]
NEIGHBORS = np.ones((3, 3), bool)


def read_labels() -> Iterator[tuple[dict, np.ndarray]]:
    """Yield the rows of the instances, each with its label map uint8 [H, W]."""
    labels = DatasetCatalog.get("shapes_val")
    for row, label in zip(DatasetCatalog.get(CLASSES), labels):
        yield row, read_label(label["sem_seg_file_name"])


def has_contact(label: np.ndarray) -> bool:
    """Return whether two objects of a label map [H, W] touch."""
    grown = [ndimage.binary_dilation(label == k, NEIGHBORS) for k in np.unique(label) if k < len(OBJECTS)]
    return bool(grown) and max(np.sum([mask & (label < len(OBJECTS)) for mask in grown], 0).flat) > 1


def register_one_class(name: str, image_ids: Iterable[int], folder: Path) -> None:
    """Register the instances of some images, all of one class whose words are those of all objects."""
    metadata = MetadataCatalog.get(CLASSES)
    content = json.loads(Path(PathManager.get_local_path(metadata.json_file)).read_text())
    image_ids = set(image_ids)
    content["images"] = [image for image in content["images"] if image["id"] in image_ids]
    content["annotations"] = [
        {**annotation, "category_id": 1} for annotation in content["annotations"] if annotation["image_id"] in image_ids
    ]
    content["categories"] = [{"id": 1, "name": "object"}]

    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    register_coco_instances(name, {"class_words": [list(OBJECTS)]}, str(path), metadata.image_root)


def evaluate_labels(cfg, dataset_name: str) -> dict[str, dict[str, float]]:
    """Return the AP of the connected components of the true labels."""
    evaluator = build_evaluator(cfg, dataset_name)
    evaluator.reset()
    image_ids = {row["image_id"] for row in DatasetCatalog.get(dataset_name)}
    num_classes = len(MetadataCatalog.get(dataset_name).thing_classes)
    names = [str(index) for index in range(num_classes + 1)]

    for row, label in read_labels():
        if row["image_id"] in image_ids:
            is_object = label < len(OBJECTS)
            labels = np.where(is_object, np.minimum(label, num_classes - 1).astype(np.int64) + 1, 0)
            image = np.zeros((*label.shape, 3), np.uint8)
            segmentation = Segmentation(image, names, labels, background=True, label_scores=np.ones(label.shape))
            evaluator.process([row], [{"instances": segmentation.instances()}])
    return evaluator.evaluate()


def evaluate_model(weights: str, options: list, names: tuple[str, ...], output: Path) -> dict[str, dict]:
    """Return the AP of a model on datasets, by dataset."""
    options = ["MODEL.WEIGHTS", weights, "DATASETS.TEST", str(names), "OUTPUT_DIR", output, *options]
    cfg = load_config(ROOT / "configs/shapes/tcl.yaml", options)
    model = Trainer.build_model(cfg).eval()
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return Trainer.test(cfg, model)


def table_row(title: str, runs: list[dict]) -> tuple[str, ...]:
    return (title, *(cell([run[task][metric] for run in runs]) for task, metric in METRICS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", nargs="+", default=["tcl_d2://shapes_tcl/weights.safetensors"], help="checkpoints of TCL"
    )
    parser.add_argument("--output", type=Path, default=Path("output/shapes/objects"))
    args = parser.parse_args()
    for name in ("detectron2", "tcl_d2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_grad_enabled(False)

    # The datasets of one class
    apart = [row["image_id"] for row, label in read_labels() if not has_contact(label)]
    register_one_class(ONE_CLASS, [row["image_id"] for row, _ in read_labels()], args.output)
    register_one_class(APART, apart, args.output)

    # True labels, and models
    cfg = load_config(ROOT / "configs/shapes/tcl.yaml", ["OUTPUT_DIR", args.output / "labels"])
    names = (CLASSES, ONE_CLASS, APART)
    runs = [evaluate_model(path, [], names, args.output / "tcl") for path in args.weights]

    titles = (f"{len(OBJECTS)} classes", "one class", f"one class, {len(apart)} scenes without contact")
    rows = []
    for name, title in zip(names, titles):
        rows.append(table_row(f"{title}: true labels", [evaluate_labels(cfg, name)]))
        rows.append(table_row(f"{title}: TCL + PAMR", [run[name] for run in runs]))
    print(tabulate(rows, ("", *(f"{task} {metric}" for task, metric in METRICS)), "pipe"))


if __name__ == "__main__":
    main()
