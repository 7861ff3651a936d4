"""Detectron2's own evaluators of objects, on the images that were segmented: box and mask AP, and panoptic quality."""

import importlib.util
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
)
from PIL import Image

from ..data.benchmarks import read_annotations
from ..utils.downloads import PathManager
from .build import EVALUATOR_REGISTRY
from .zero_shot import ZeroShotSemSegEvaluator, inference_folder

# What evaluators take of a model's outputs; any other one takes the scores, `sem_seg`
_OUTPUTS = {
    ZeroShotSemSegEvaluator: "sem_seg_labels",
    COCOEvaluator: "instances",
    LVISEvaluator: "instances",
    COCOPanopticEvaluator: "panoptic_seg",
}


def needed_outputs(evaluator: DatasetEvaluator | None) -> frozenset[str]:
    """Return the model's outputs that an evaluator takes, or several joined by Detectron2's DatasetEvaluators."""
    evaluators = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    return frozenset(
        next((output for base, output in _OUTPUTS.items() if isinstance(part, base)), "sem_seg")
        for part in evaluators or (None,)
    )


class _CheckedEvaluator(DatasetEvaluator):
    """An evaluator of Detectron2's whose annotations are checked when it is built, and their sizes at each image."""

    def __init__(self, dataset_name: str, **options):
        """Build it, see read_annotations; `options` are those of Detectron2's evaluator."""
        self._content = read_annotations(dataset_name)
        self._images = {image["id"]: image for image in self._content["images"]}
        DatasetCatalog.get(dataset_name)  # its classes are then in the metadata
        super().__init__(dataset_name, **options)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the objects of images; SizeMismatchError names one that is not of the annotated size."""
        for input_per_image, output in zip(inputs, outputs):
            annotated, predicted = self._sizes(input_per_image, output)
            if annotated != predicted:
                raise SizeMismatchError(
                    f"Image {input_per_image['file_name']} is annotated at {annotated} and segmented at {predicted} "
                    "pixels (height, width): correct its annotations, or take the images that were annotated."
                )
        super().process(inputs, outputs)

    def _sizes(self, input_per_image: dict, output: dict) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size of an image that its annotations have, and that of the prediction."""
        image = self._images[input_per_image["image_id"]]
        return (image["height"], image["width"]), tuple(output["instances"].image_size)


class COCOImagesEvaluator(_CheckedEvaluator, COCOEvaluator):
    """COCOEvaluator on the images that it was given: those of TEST.ZERO_SHOT.MAX_IMAGES, and none that is broken."""

    def __init__(self, dataset_name: str, **options):
        super().__init__(dataset_name, allow_cached_coco=False, **options)
        self._coco_api.dataset = self._content
        with redirect_stdout(StringIO()):  # pycocotools prints its progress
            self._coco_api.createIndex()

    def _eval_predictions(self, predictions: list[dict], img_ids: Collection[int] | None = None) -> None:
        super()._eval_predictions(predictions, img_ids or _image_ids(predictions))


class LVISImagesEvaluator(_CheckedEvaluator, LVISEvaluator):
    """LVISEvaluator on the images that it was given: those of TEST.ZERO_SHOT.MAX_IMAGES, and none that is broken."""

    def _eval_predictions(self, predictions: list[dict]) -> None:
        image_ids = set(_image_ids(predictions))
        self._lvis_api.dataset = dataset = dict(self._content)
        for name, key in (("images", "id"), ("annotations", "image_id")):
            dataset[name] = [entry for entry in dataset[name] if entry[key] in image_ids]
        self._lvis_api._create_index()
        with _numpy_with_float():
            super()._eval_predictions(predictions)


class PanopticEvaluator(_CheckedEvaluator, COCOPanopticEvaluator):
    """COCOPanopticEvaluator on checked annotations."""

    def _sizes(self, input_per_image: dict, output: dict) -> tuple[tuple[int, int], tuple[int, int]]:
        with PathManager.open(input_per_image["pan_seg_file_name"], "rb") as file, Image.open(file) as picture:
            return picture.size[::-1], tuple(output["panoptic_seg"][0].shape)


@contextmanager
def _numpy_with_float() -> Iterator[None]:
    """Let numpy have `float` again, which it has not since 1.24, and which lvis 0.5.3 (the last one) asks for."""
    if hasattr(np, "float"):
        yield
        return
    np.float = float
    try:
        yield
    finally:
        del np.float


def _image_ids(predictions: list[dict]) -> list[int]:
    return sorted({prediction["image_id"] for prediction in predictions})


@EVALUATOR_REGISTRY.register("coco")
def build_coco_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None) -> COCOEvaluator:
    """Build the evaluator of instances in COCO's format; arguments as build_evaluator's."""
    return _build(COCOImagesEvaluator, cfg, dataset_name, output_folder)


@EVALUATOR_REGISTRY.register("lvis")
def build_lvis_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None) -> LVISEvaluator:
    """Build the evaluator of instances in LVIS's format; arguments as build_evaluator's."""
    return _build(LVISImagesEvaluator, cfg, dataset_name, output_folder)


@EVALUATOR_REGISTRY.register("coco_panoptic_seg")
def build_panoptic_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None
) -> COCOPanopticEvaluator:
    """Build the evaluator of panoptic quality; arguments as build_evaluator's, errors as check_panoptic's."""
    check_panoptic(cfg, dataset_name)
    return _build(PanopticEvaluator, cfg, dataset_name, output_folder)


def check_panoptic(cfg: CfgNode, dataset_name: str) -> None:
    """Check that panoptic quality can be measured.

    Args:
        cfg: the configuration.
        dataset_name: for the errors.

    Raises:
        RuntimeError: panopticapi is not installed.
        ValueError: not all images are to be evaluated.
    """
    if importlib.util.find_spec("panopticapi") is None:
        raise RuntimeError(
            f"Dataset '{dataset_name}' is evaluated by panopticapi, which is not installed, and not on PyPI: "
            "pip install git+https://github.com/cocodataset/panopticapi.git"
        )
    for key in ("MAX_IMAGES", "SKIP_BROKEN"):
        if cfg.TEST.ZERO_SHOT[key]:
            raise ValueError(
                f"TEST.ZERO_SHOT.{key} is {cfg.TEST.ZERO_SHOT[key]}, but panoptic quality is of all images of "
                f"'{dataset_name}': leave it at its default"
            )


def _build(
    evaluator: type[DatasetEvaluator], cfg: CfgNode, dataset_name: str, output_folder: str | Path | None
) -> DatasetEvaluator:
    return evaluator(dataset_name, output_dir=str(output_folder or inference_folder(cfg, dataset_name)))
