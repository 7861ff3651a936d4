#!/usr/bin/env python
"""Show into which groups a GroupViT divides images: a row has the image, the groups of each stage, and the classes.

A group has the mean color of its pixels. The image is one window, so that all of it has the same groups.

python tools/visualize_groups.py photo.jpg --classes "cat, dog, grass"
python tools/visualize_groups.py scene.png --classes "brick, lava" --config-file configs/shapes/groupvit.yaml \\
    --opts MODEL.WEIGHTS output/shapes/groupvit/model_final.pth
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from tcl_d2.data.benchmarks import image_settings, model_input
from tcl_d2.modeling import GroupViT
from tcl_d2.modeling.segmentor.windows import pad_to_multiple
from tcl_d2.predictor import TCLPredictor
from tcl_d2.segmentation.drawing import draw_groups, enlarge, save_picture
from tcl_d2.utils.errors import one_message
from tcl_d2.utils.files import check_output
from tcl_d2.utils.images import as_array


def build_predictor(config: str, options: list[str]) -> TCLPredictor:
    """Build the predictor of a GroupViT for which an image is one window."""
    predictor = TCLPredictor(config, *options, "TEST.ZERO_SHOT.CROP_SIZE", 0)
    if not isinstance(predictor.model, GroupViT):
        raise ValueError(f"--config-file: '{config}' is a {type(predictor.model).__name__}, which has no groups")
    return predictor


@torch.no_grad()
def draw_row(predictor: TCLPredictor, path: Path, classes: str, background: bool) -> np.ndarray:
    """Draw an image, its groups in each stage, and its classes, side by side and of one height."""
    cfg, model = predictor.cfg, predictor.model
    image = as_array(path)

    # Resize the image as the model sees it
    inputs = model_input(image, **image_settings(cfg))["image"]
    seen = inputs.clamp(0, 255).byte().permute(1, 2, 0).numpy()
    padded, (rows, columns) = pad_to_multiple(model.normalize_images([inputs]), model.clip.patch_size)

    # Draw groups and classes
    groups = [stage[0, rows, columns].cpu().numpy() for stage in model.predict_groups(padded)]
    overlay = predictor(seen, classes, background).draw_overlay()
    panels = [enlarge(seen), *(draw_groups(seen, stage) for stage in groups), overlay]
    height = max(len(panel) for panel in panels)
    return np.concatenate(
        [np.pad(panel, ((0, height - len(panel)), (0, 10), (0, 0)), constant_values=255) for panel in panels], axis=1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--classes", required=True, help='words, such as "cat, dog, grass"')
    parser.add_argument("--background", action="store_true", help="whether there is a background besides")
    parser.add_argument(
        "--config-file", default="groupvit/yfcc.yaml", help="a config of a GroupViT; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, default=Path("output/groups.png"), help="default: %(default)s")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")
    args = parser.parse_args()

    with one_message():
        check_output(args.output)
        predictor = build_predictor(args.config_file, args.opts)
        rows = [draw_row(predictor, path, args.classes, args.background) for path in args.images]

        # Pad rows to one width
        width = max(row.shape[1] for row in rows)
        rows = [np.pad(row, ((0, 10), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
        save_picture(np.concatenate(rows), args.output)
    print(args.output)


if __name__ == "__main__":
    main()
