"""Detectron2's own evaluators of objects, on the images that were segmented: box and mask AP, and panoptic quality."""

from collections.abc import Collection
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import IO, Any, cast
from unittest.mock import patch

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
from ..modeling.functional import map_size
from ..utils.downloads import PathManager
from ..utils.errors import expect
from ..utils.imports import import_optional
from ..utils.upstream import joined_evaluators
from .build import EVALUATOR_REGISTRY
from .zero_shot import ZeroShotSemSegEvaluator, inference_folder

# The model's output that each evaluator takes; any other one takes the scores, `sem_seg`
_OUTPUTS = {
    ZeroShotSemSegEvaluator: "sem_seg_labels",
    COCOEvaluator: "instances",
    LVISEvaluator: "instances",
    COCOPanopticEvaluator: "panoptic_seg",
}


def needed_outputs(evaluator: DatasetEvaluator | None) -> frozenset[str]:
    """Return the model's outputs that an evaluator takes, or all that Detectron2's DatasetEvaluators joins."""
    evaluators = joined_evaluators(evaluator) if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    return frozenset(
        next((output for base, output in _OUTPUTS.items() if isinstance(part, base)), "sem_seg")
        for part in evaluators or (None,)
    )


class _CheckedEvaluator(DatasetEvaluator):
    """A Detectron2 evaluator that checks its annotations when it is built, and their sizes at each image."""

    def __init__(self, cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None, **options: object):
        self._content = read_annotations(dataset_name)
        self._images = {image["id"]: image for image in self._content["images"]}
        DatasetCatalog.get(dataset_name)  # its classes are then in the metadata
        folder = str(output_folder or inference_folder(cfg, dataset_name))
        # That of the Detectron2 evaluator which a subclass has beside this one
        super().__init__(dataset_name, output_dir=folder, **options)  # pyright: ignore[reportCallIssue]

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the objects of images; SizeMismatchError names one whose annotated size differs."""
        for input_per_image, output in zip(inputs, outputs):
            annotated, predicted = self._sizes(input_per_image, output)
            if annotated != predicted:
                raise SizeMismatchError(
                    f"Image {input_per_image['file_name']} is annotated at {annotated} and segmented at {predicted} "
                    "pixels (height, width): correct its annotations, or take the images that were annotated."
                )
        super().process(inputs, outputs)

    def _sizes(self, input_per_image: dict, output: dict) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the sizes of an image by its annotations and by the prediction."""
        image = self._images[input_per_image["image_id"]]
        return (image["height"], image["width"]), tuple(output["instances"].image_size)


@EVALUATOR_REGISTRY.register("coco")
class COCOImagesEvaluator(_CheckedEvaluator, COCOEvaluator):
    """COCOEvaluator on the images that it is given: TEST.ZERO_SHOT.MAX_IMAGES of them, and no broken ones."""

    def __init__(self, cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None):
        super().__init__(cfg, dataset_name, output_folder, allow_cached_coco=False)
        cast(Any, self._coco_api).dataset = self._content
        with redirect_stdout(StringIO()):  # pycocotools prints its progress
            self._coco_api.createIndex()

    def _eval_predictions(self, predictions: list[dict], img_ids: Collection[int] | None = None) -> None:
        super()._eval_predictions(predictions, img_ids or _image_ids(predictions))


@EVALUATOR_REGISTRY.register("lvis")
class LVISImagesEvaluator(_CheckedEvaluator, LVISEvaluator):
    """LVISEvaluator on the images that it is given: TEST.ZERO_SHOT.MAX_IMAGES of them, and no broken ones."""

    def _eval_predictions(self, predictions: list[dict]) -> None:
        image_ids = set(_image_ids(predictions))
        self._lvis_api.dataset = dataset = dict(self._content)
        for name, key in (("images", "id"), ("annotations", "image_id")):
            dataset[name] = [entry for entry in dataset[name] if entry[key] in image_ids]
        self._lvis_api._create_index()
        # lvis 0.5.3, the last release, uses np.float, which NumPy 1.24 has removed
        with patch.object(np, "float", float, create=True):
            super()._eval_predictions(predictions)


@EVALUATOR_REGISTRY.register("coco_panoptic_seg")
class PanopticEvaluator(_CheckedEvaluator, COCOPanopticEvaluator):
    """COCOPanopticEvaluator on checked annotations."""

    def __init__(self, cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None):
        check_panoptic(cfg, dataset_name)
        super().__init__(cfg, dataset_name, output_folder)

    def _sizes(self, input_per_image: dict, output: dict) -> tuple[tuple[int, int], tuple[int, int]]:
        with (
            PathManager.open(input_per_image["pan_seg_file_name"], "rb") as file,
            Image.open(cast(IO[bytes], file)) as picture,
        ):
            width, height = picture.size
        return (height, width), map_size(output["panoptic_seg"][0])


def _image_ids(predictions: list[dict]) -> list[int]:
    return sorted({prediction["image_id"] for prediction in predictions})


def check_panoptic(cfg: CfgNode, dataset_name: str) -> None:
    """Raise an error unless panopticapi is installed (RuntimeError) and all images are evaluated (ValueError)."""
    source = "git+https://github.com/cocodataset/panopticapi.git"  # it is not on PyPI
    import_optional("panopticapi", f"the evaluation of '{dataset_name}'", source)
    for key in ("MAX_IMAGES", "SKIP_BROKEN"):
        value, expected = cfg.TEST.ZERO_SHOT[key], f"its default: panoptic quality needs all images of '{dataset_name}'"
        expect(not value, f"TEST.ZERO_SHOT.{key}", value, expected)
