#!/usr/bin/env python
"""Show what training and evaluation see of a dataset: augmented pairs with captions, a benchmark's labels, or objects.

python tools/visualize_data.py shapes_train --config-file configs/shapes/tcl.yaml
python tools/visualize_data.py shapes_val --count 6 --output output/labels.png
python tools/visualize_data.py shapes_instances_val
"""

import argparse
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from tcl_d2 import load_config
from tcl_d2.data import build_image_text_train_loader, check_datasets
from tcl_d2.data.benchmarks import class_legend
from tcl_d2.data.checks import check_have_labels
from tcl_d2.data.dataset_files import subsample
from tcl_d2.data.labels import LabelMapper
from tcl_d2.segmentation.drawing import draw_overlay, draw_text, enlarge, save_picture
from tcl_d2.segmentation.objects import check_opencv
from tcl_d2.utils.errors import one_message
from tcl_d2.utils.images import as_array
from tcl_d2.words.datasets import INSTANCE_TYPES

CONFIG = "tcl.yaml"


def draw_pairs(name: str, config: str, count: int) -> np.ndarray:
    """Draw training pairs as the mapper gives them, image and caption side by side."""
    options = ["DATASETS.TRAIN", (name,), "SOLVER.IMS_PER_BATCH", count, "DATALOADER.NUM_WORKERS", 0]
    options += ["DATALOADER.LABELED_RATIO", 0.0]  # the pairs alone
    loader = build_image_text_train_loader(load_config(config, options))
    rows = []
    for dataset_dict in next(iter(loader)):
        image = enlarge(dataset_dict["image"].clamp(0, 255).byte().permute(1, 2, 0).numpy(), side=200)
        caption = draw_text(dataset_dict["caption"], len(image), 400, size=16)
        rows.append(np.concatenate([image, caption], axis=1))
    return np.concatenate(rows)


def draw_labels(name: str, count: int) -> np.ndarray:
    """Draw images of a benchmark under their labels, one below the other; ignored pixels are gray."""
    mapper = LabelMapper.of(name)
    classes, colors = class_legend(name)
    rows = []
    for dataset_dict in subsample(DatasetCatalog.get(name), count):
        label = mapper.read(dataset_dict["sem_seg_file_name"])
        rows.append(draw_overlay(as_array(dataset_dict["file_name"]), label, classes, colors))
    return stack(rows)


def draw_objects(name: str, count: int) -> np.ndarray:
    """Draw images under their annotated objects, one below the other, by Detectron2's Visualizer."""
    check_opencv()
    from detectron2.utils.visualizer import Visualizer

    rows = []
    for dataset_dict in subsample(DatasetCatalog.get(name), count):
        image = as_array(dataset_dict["file_name"])
        scale = len(enlarge(image)) / len(image)
        visualizer = Visualizer(image, MetadataCatalog.get(name), scale)
        rows.append(visualizer.draw_dataset_dict(dataset_dict).get_image())
    return stack(rows)


def stack(rows: list[np.ndarray]) -> np.ndarray:
    """Put pictures one below the other: padded to one width, with a white line between them."""
    width = max(row.shape[1] for row in rows)
    padding = [((0, 10), (0, width - row.shape[1]), (0, 0)) for row in rows]
    return np.concatenate([np.pad(row, pad, constant_values=255) for row, pad in zip(rows, padding)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a registered dataset, or a benchmark's folder")
    parser.add_argument("--config-file", default=CONFIG, help="config whose augmentation and tokenizer to use")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--output", type=Path, help="default: output/NAME.png")
    args = parser.parse_args()

    with one_message():
        check_datasets([args.name])
        metadata = MetadataCatalog.get(args.name)
        if metadata.get("evaluator_type") in INSTANCE_TYPES:
            picture = draw_objects(args.name, args.count)
        elif "stuff_classes" in metadata.as_dict():
            check_have_labels([args.name])
            picture = draw_labels(args.name, args.count)
        else:
            picture = draw_pairs(args.name, args.config_file, args.count)

    path = args.output or Path("output", f"{args.name.strip('/').replace('/', '_')}.png")
    save_picture(picture, path)
    print(path)


if __name__ == "__main__":
    main()
