"""Measures beside those of the protocol, from the same pass over the images: words, many classes, boundaries."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from fvcore.common.registry import Registry
from torch import Tensor

from ..utils.errors import expect
from ..utils.imports import import_optional
from ..utils.upstream import mask_to_boundary
from .confusion import by_class, class_iou, confusion_matrix, most_confused
from .similarity import read_similarity

MEASURE_REGISTRY = Registry("MEASURE")
MEASURE_REGISTRY.__doc__ = """
Measures by name, the values of TEST.ZERO_SHOT.MEASURES: subclasses of Measure.
"""


class Measure:
    """A measure of a dataset's predictions, from its confusion matrix and, if need be, statistics of its own.

    A subclass defines `compute_metrics` or `compute_tables`, and the statistics they need of each image. Its
    constructor raises an error where it cannot be used.

    Attributes:
        needs_similarity: whether it needs the similarity of classes.
        similarity: fp64 [K, K] in 0..1: row: class of the ground truth; column: predicted class. None before it is set.
    """

    needs_similarity = False

    def __init__(self, class_names: Sequence[str]):
        self.class_names = class_names
        self.similarity: np.ndarray | Any = None

    def empty_statistics(self) -> dict[str, np.ndarray]:
        """Return the statistics of no image besides the confusion matrix: arrays of zeros by name."""
        return {}

    def update_statistics(self, statistics: dict[str, np.ndarray], prediction: Tensor, label: Tensor) -> None:
        """Add an image to the statistics, in place; arguments as ZeroShotSemSegEvaluator.update_statistics."""

    def compute_metrics(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Compute metrics in percent; a name with "-" is of a class, one without of all."""
        return {}

    def compute_tables(self, statistics: Mapping[str, np.ndarray]) -> dict[str, list[dict]]:
        """Return tables by title, each a list of rows, as JSON takes them."""
        return {}


def check_measures(cfg: CfgNode) -> None:
    """Raise a ValueError for an unknown measure, or a TEST.ZERO_SHOT.SIMILARITY that no measure needs."""
    test = cfg.TEST.ZERO_SHOT
    for name in test.MEASURES:
        if name not in MEASURE_REGISTRY:
            known = ", ".join(known for known, _ in MEASURE_REGISTRY)
            raise ValueError(f"TEST.ZERO_SHOT.MEASURES has '{name}'; expected names of {known}.")

    is_needed = any(MEASURE_REGISTRY.get(name).needs_similarity for name in test.MEASURES)
    expected = "'', for no measure of TEST.ZERO_SHOT.MEASURES needs it, as SoftIoU and ConfusedPairs do"
    expect(is_needed or not test.SIMILARITY, "TEST.ZERO_SHOT.SIMILARITY", f"'{test.SIMILARITY}'", expected)


def build_measures(cfg: CfgNode, dataset_name: str) -> list[Measure]:
    """Build the measures of TEST.ZERO_SHOT.MEASURES and of the dataset's metadata (`measures`, names).

    Those that need a similarity get that of TEST.ZERO_SHOT.SIMILARITY.
    """
    check_measures(cfg)
    metadata = MetadataCatalog.get(dataset_name)
    names = dict.fromkeys([*cfg.TEST.ZERO_SHOT.MEASURES, *metadata.get("measures", ())])
    class_names = metadata.stuff_classes
    measures = [MEASURE_REGISTRY.get(name)(class_names) for name in names]

    # Similarity
    path = cfg.TEST.ZERO_SHOT.SIMILARITY
    if path:
        similarity = read_similarity(path, dataset_name, len(class_names))
        for measure in measures:
            measure.similarity = similarity
    return measures


# ---------------------------------------------------------------------------------------- words


def soft_metrics(matrix: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, float]:
    """Compute IoU and pixel accuracy where a wrong prediction counts in part, by the similarity of the words.

    With T_k and P_k the pixels of class k in the ground truth and in the prediction,

        I_k = (sum_j S_kj C_kj + sum_j S_jk C_jk) / 2     IoU_k = I_k / (T_k + P_k - I_k)     pACC = sum S C / sum C

    For S = identity I_k is C_kk, and both are the plain ones. For S = 1 everywhere all is right but pixels of no class.
    2 I_k / (T_k + P_k), the Dice score, is the mean credit of the pixels that are k in either of both. The IoU is in
    0..1, grows with S, and stays the same where truth and prediction change places.

    Args:
        matrix: C, numbers of pixels [K, K + 1] or [K, K].
        similarity: S, [K, K] in 0..1, with ones on the diagonal.

    Returns:
        the IoU [K], nan for a class that does not occur, and the pixel accuracy.
    """
    credit = similarity * matrix[:, : len(matrix)]  # none for a prediction of no class
    truth, predicted = matrix.sum(1), matrix.sum(0)[: len(matrix)]
    intersection = (credit.sum(1) + credit.sum(0)) / 2
    with np.errstate(invalid="ignore"):
        return intersection / (truth + predicted - intersection), credit.sum() / truth.sum()


@MEASURE_REGISTRY.register()
class SoftIoU(Measure):
    """IoU and accuracy where a prediction counts in part, by the similarity of the words (see soft_metrics).

    Its metrics are soft_mIoU, soft_pACC and soft_IoU-<class>.
    """

    needs_similarity = True

    def compute_metrics(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        iou, accuracy = soft_metrics(statistics["confusion_matrix"], self.similarity)
        return {
            "soft_mIoU": 100 * float(np.nanmean(iou)),
            "soft_pACC": 100 * accuracy,
            **by_class("soft_IoU", self.class_names, iou),
        }


@MEASURE_REGISTRY.register()
class ConfusedPairs(Measure):
    """The pairs of classes that are confused most, with their pixels and the similarity of their words."""

    needs_similarity = True

    def compute_tables(self, statistics: Mapping[str, np.ndarray]) -> dict[str, list[dict]]:
        pairs = most_confused(statistics["confusion_matrix"], self.class_names, self.similarity)
        return {"most confused pairs": pairs}


# ---------------------------------------------------------------------------------------- many classes


@MEASURE_REGISTRY.register()
class PresentIoU(Measure):
    """mIoU over the classes of the ground truth alone, as Detectron2's SemSegEvaluator takes it: present_mIoU.

    The protocol's mIoU counts a class that is predicted but never there as 0.
    """

    def compute_metrics(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        matrix = statistics["confusion_matrix"]
        return {"present_mIoU": 100 * class_iou(matrix)[matrix.sum(1) > 0].mean()}


@MEASURE_REGISTRY.register()
class ZeroIoU(Measure):
    """The share of the classes, of those that mIoU is the mean of, whose IoU is 0: zero_IoU."""

    def compute_metrics(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        iou = class_iou(statistics["confusion_matrix"])
        return {"zero_IoU": 100 * (iou == 0).sum() / np.isfinite(iou).sum()}


# ---------------------------------------------------------------------------------------- boundaries


class BoundaryMeasure(Measure):
    """The base of the measures of boundaries, which need OpenCV."""

    def __init__(self, class_names: Sequence[str]):
        super().__init__(class_names)
        # Detectron2's evaluator uses it
        import_optional("cv2", f"TEST.ZERO_SHOT.MEASURES {type(self).__name__}", "opencv-python-headless")


@MEASURE_REGISTRY.register()
class BoundaryIoU(BoundaryMeasure):
    """Boundary IoU as Detectron2's SemSegEvaluator defines it: labels are eroded as an image of gray values is.

    Its metrics are boundary_mIoU and, by Detectron2's names, BoundaryIoU-<class> and min(IoU, B-Iou)-<class>.
    """

    def __init__(self, class_names: Sequence[str]):
        super().__init__(class_names)
        # Labels are uint8, and one value is for ignored pixels
        expected = f"ClassBoundaryIoU for {len(class_names)} classes: as in Detectron2, it is for at most 254"
        expect(len(class_names) <= 254, "TEST.ZERO_SHOT.MEASURES", "BoundaryIoU", expected)

    def empty_statistics(self) -> dict[str, np.ndarray]:
        num_classes = len(self.class_names)
        return {"boundary_confusion_matrix": np.zeros((num_classes, num_classes + 1), np.int64)}

    def update_statistics(self, statistics: dict[str, np.ndarray], prediction: Tensor, label: Tensor) -> None:
        maps = [labels.byte().cpu().numpy() for labels in (prediction, label)]
        predicted, truth = (torch.from_numpy(mask_to_boundary(labels)) for labels in maps)
        statistics["boundary_confusion_matrix"] += confusion_matrix(predicted, truth, len(self.class_names)).numpy()

    def compute_metrics(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        iou = class_iou(statistics["confusion_matrix"])
        boundary_iou = class_iou(statistics["boundary_confusion_matrix"])
        smaller = np.where(boundary_iou < iou, boundary_iou, iou)  # as min of Python, also for nan
        return {
            "boundary_mIoU": 100 * float(np.nanmean(boundary_iou)),
            **by_class("BoundaryIoU", self.class_names, boundary_iou),
            **by_class("min(IoU, B-Iou)", self.class_names, smaller),
        }


@MEASURE_REGISTRY.register()
class ClassBoundaryIoU(BoundaryMeasure):
    """Boundary IoU of each class's mask: B. Cheng et al., Boundary IoU, CVPR 2021.

    The boundary of a mask is Detectron2's. Intersection and union of boundaries are summed over the images, as for
    mIoU. Ignored pixels are cut out of both masks first. Its metrics are class_boundary_mIoU and
    class_boundary_IoU-<class>.
    """

    def empty_statistics(self) -> dict[str, np.ndarray]:
        return {name: np.zeros(len(self.class_names), np.int64) for name in ("boundary_hits", "boundary_union")}

    def update_statistics(self, statistics: dict[str, np.ndarray], prediction: Tensor, label: Tensor) -> None:
        num_classes = len(self.class_names)
        labels = label.cpu().numpy()
        predictions = np.where(labels == num_classes, num_classes, prediction.cpu().numpy())
        for index in np.union1d(predictions, labels):
            if index < num_classes:
                predicted, truth = (
                    mask_to_boundary((classes == index).astype(np.uint8)) > 0 for classes in (predictions, labels)
                )
                statistics["boundary_hits"][index] += (predicted & truth).sum()
                statistics["boundary_union"][index] += (predicted | truth).sum()

    def compute_metrics(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        with np.errstate(invalid="ignore"):
            iou = statistics["boundary_hits"] / statistics["boundary_union"]
        return {
            "class_boundary_mIoU": 100 * float(np.nanmean(iou)),
            **by_class("class_boundary_IoU", self.class_names, iou),
        }
