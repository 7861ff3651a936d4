#!/usr/bin/env python
"""Shows what training and evaluation see of a dataset: augmented pairs with captions, or a benchmark's labels.

python tools/visualize_data.py shapes_train --config-file configs/shapes/tcl.yaml
python tools/visualize_data.py shapes_val --count 6 --output output/labels.png
"""

import argparse
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from tcl_d2 import load_config
from tcl_d2.data import build_image_text_train_loader, check_datasets
from tcl_d2.data.benchmarks import class_legend, subsample
from tcl_d2.data.labels import LabelMapper
from tcl_d2.utils.errors import one_message
from tcl_d2.utils.images import as_array
from tcl_d2.utils.visualizer import draw_overlay, draw_text, enlarge, save_picture

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

    # Pad them to one width, with a white line between them
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
        is_benchmark = "stuff_classes" in MetadataCatalog.get(args.name).as_dict()
        if is_benchmark:
            picture = draw_labels(args.name, args.count)
        else:
            picture = draw_pairs(args.name, args.config_file, args.count)

    path = args.output or Path("output", f"{args.name.strip('/').replace('/', '_')}.png")
    save_picture(picture, path)
    print(path)


if __name__ == "__main__":
    main()
