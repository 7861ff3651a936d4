"""What models are evaluated on: zero-shot benchmarks as Detectron2 catalog entries, and how their images are read."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from fvcore.transforms.transform import Transform
from torch.nn import functional as F

from . import shapes

EVALUATOR_TYPE = "zero_shot_sem_seg"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def datasets_root() -> Path:
    """Where data sets lie: $DETECTRON2_DATASETS, or datasets/ in the working directory, as in Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def list_pairs(name: str, images: Path, labels: Path, prepare: str) -> list[dict]:
    """The images of a folder, each with its label file (same stem, .png), sorted by name.

    Raises:
        FileNotFoundError: a folder is missing or empty, or an image has no label; says how to prepare the data set.
    """
    advice = f"Looked below DETECTRON2_DATASETS={datasets_root()}. To prepare it: {prepare}"
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"Data set '{name}': no folder {folder}. {advice}")
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"Data set '{name}': no images in {images}. {advice}")
    labeled = {path.name for path in labels.iterdir()}
    missing = [path.stem for path in files if f"{path.stem}.png" not in labeled]
    if missing:
        raise FileNotFoundError(
            f"Data set '{name}': {len(missing)} of {len(files)} images have no label, such as "
            f"{labels / missing[0]}.png. {advice}"
        )
    return [
        {"file_name": str(path), "sem_seg_file_name": str(labels / f"{path.stem}.png"), "image_id": path.stem}
        for path in files
    ]


def register_benchmark(
    name: str,
    images: str,
    labels: str,
    classes: Sequence[str],
    background: bool = False,
    label_map: dict[int, int] | None = None,
    ignore_label: int = 255,
    colors: Sequence[tuple[int, int, int]] | None = None,
    prepare: str = "put images and labels there",
) -> None:
    """Registers a folder of images and one of label PNGs as a zero-shot benchmark. Nothing is read from disk yet.

    Args:
        images, labels: folders, relative to DETECTRON2_DATASETS or absolute.
        classes: class words in the order of the labels; with `background`, the first word stands for the background
            and is never asked for.
        label_map: value in the label file -> index of `classes` or `ignore_label`; None: values are these already.
        colors: RGB of each class for pictures.
        prepare: the command that makes the data, for the error when it is missing.
    """

    def load() -> list[dict]:
        return list_pairs(name, datasets_root() / images, datasets_root() / labels, prepare)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes),
        stuff_colors=[tuple(color) for color in colors or distinct_colors(len(classes))],
        background=background,
        label_map=label_map,
        ignore_label=ignore_label,
        evaluator_type=EVALUATOR_TYPE,
    )


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """RGB colours that are far apart: the palette of PASCAL VOC, black first."""
    bits = np.unpackbits(np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4), axis=1)[:, ::-1]
    channels = [sum(bits[:, 3 * i + c].astype(int) << (7 - i) for i in range(8)) for c in range(3)]
    return [tuple(int(value) for value in color) for color in zip(*channels)]


class PlainBilinearResize(Transform):
    """Bilinear resizing without antialias, to (height, width), as OpenCV's INTER_LINEAR: uint8 [H, W, 3] -> same.

    The published numbers had it so; PIL's bilinear antialiases when it shrinks, which moves mIoU.
    """

    def __init__(self, height: int, width: int):
        super().__init__()
        self.size = (height, width)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        resized = F.interpolate(tensor, size=self.size, mode="bilinear", align_corners=False)
        return resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError("Zero-shot benchmarks have no coordinates.")


def segmentation_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Size at which an image is segmented: short side `short`, long side at most `long`, rounded half up."""
    scale = min(long / max(height, width), short / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


class BenchmarkMapper:
    """Reads a benchmark's image for the model: {"file_name", ...} -> the same with `image`, `height` and `width`."""

    @configurable
    def __init__(self, short: int, long: int):
        self.short = short
        self.long = long

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"short": cfg.INPUT.MIN_SIZE_TEST, "long": cfg.INPUT.MAX_SIZE_TEST}

    def __call__(self, one: dict) -> dict:
        """
        Returns:
            `one` with `image` uint8 [3, h, w] (RGB, resized), and the original `height` and `width`.

        Raises:
            OSError: the image is missing or broken; names it.
        """
        try:
            image = utils.read_image(one["file_name"], format="RGB")
        except Exception as error:  # PIL raises many kinds
            raise OSError(f"Image {one['file_name']} could not be read: {error}") from None
        height, width = image.shape[:2]
        size = segmentation_size(height, width, self.short, self.long)
        if size != (height, width):
            image = PlainBilinearResize(*size).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {**one, "image": tensor, "height": height, "width": width}


def _register_shapes() -> None:
    """The small world's three: with background, without, and with its grounds for stuff. One set of label files."""
    objects, everything = shapes.OBJECTS, shapes.OBJECTS + shapes.GROUNDS
    things, grounds = range(len(objects)), range(len(objects), len(everything))
    variants = {
        "shapes_val": (("background", *objects), True, {k: k + 1 for k in things} | {k: 0 for k in grounds}),
        "shapes_objects_val": (objects, False, {k: k for k in things} | {k: 255 for k in grounds}),
        "shapes_stuff_val": (everything, False, None),
    }
    for name, (classes, background, label_map) in variants.items():
        register_benchmark(
            name,
            images="shapes/val/images",
            labels="shapes/val/labels",
            classes=classes,
            background=background,
            label_map=label_map,
            prepare="python datasets/prepare_shapes.py",
        )


_register_shapes()
