"""Confusion matrices, and the protocol's metrics and most confused pairs from them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..words.parsing import NO_CLASS

PROTOCOL_METRICS = ("mIoU", "fwIoU", "mACC", "pACC")  # over all classes, see compute_metrics


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each pair of classes; rows are the ground truth (in Detectron2's evaluator, the prediction).

    Args:
        prediction: class indices, integers [H, W]; num_classes where of no class.
        label: class indices of the ground truth, integers [H, W]; num_classes where ignored.

    Returns:
        integers [K, K + 1]; the last column has the pixels that are predicted to be of no class.
    """
    check_class_indices(prediction, num_classes, "The prediction")
    check_class_indices(label, num_classes, "The ground truth")

    # In int32 where the indices fit: half the memory traffic.
    dtype = torch.int32 if num_classes < 46_000 else torch.int64
    index = torch.add(prediction.to(dtype), label.to(dtype), alpha=num_classes + 1)
    counts = torch.bincount(index.flatten(), minlength=(num_classes + 1) ** 2)
    return counts.view(num_classes + 1, num_classes + 1)[:num_classes]


def check_class_indices(labels: Tensor, num_classes: int, name: str) -> None:
    """Raise a ValueError, which begins with `name`, unless labels are integers [H, W] in 0..num_classes."""
    is_tensor = isinstance(labels, Tensor)
    if not is_tensor or labels.ndim != 2 or labels.is_floating_point() or labels.is_complex():
        given = f"{labels.dtype} {list(labels.shape)}" if is_tensor else f"of the type {type(labels).__name__}"
        raise ValueError(f"{name} is {given}; expected a tensor of integers [H, W].")

    for value in map(int, labels.long().aminmax() if labels.numel() else ()):
        if not 0 <= value <= num_classes:
            expected = f"the index of one of {num_classes} classes, or {num_classes} for no class"
            raise ValueError(f"{name} has the value {value}; expected {expected}.")


def class_iou(confusion_matrix: np.ndarray) -> np.ndarray:
    """Compute the IoU of each class, fp64 [K] in 0..1; nan for a class that does not occur."""
    matrix = confusion_matrix.astype(np.float64)
    hits, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)[: len(matrix)]
    with np.errstate(invalid="ignore"):
        return hits / (truth + predicted - hits)


def compute_metrics(confusion_matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Compute the metrics, in percent, from numbers of pixels [K, K + 1] or [K, K].

    Returns:
        metrics by name:

        mIoU: mean over the classes that occur in prediction or ground truth.
        fwIoU: mean weighted by the classes' pixels in the ground truth.
        mACC: mean accuracy over the classes that occur in the ground truth.
        pACC: share of the pixels that are right.
        IoU-<class>, ACC-<class>: nan for a class that does not occur (for ACC, in the ground truth).

    Raises:
        ValueError: there is no pixel of ground truth.
    """
    matrix = confusion_matrix.astype(np.float64)
    hits, truth = np.diag(matrix), matrix.sum(1)
    if truth.sum() == 0:
        raise ValueError("Nothing to evaluate: every pixel of the ground truth is ignored, or there was no image.")

    # Nan for a class that does not occur
    iou = class_iou(matrix)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = hits / truth

    return {
        "mIoU": 100 * float(np.nanmean(iou)),
        "fwIoU": 100 * np.nansum(iou * truth) / truth.sum(),
        "mACC": 100 * float(np.nanmean(accuracy)),
        "pACC": 100 * hits.sum() / truth.sum(),
        **by_class("IoU", class_names, iou),
        **by_class("ACC", class_names, accuracy),
    }


def by_class(metric: str, class_names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Return a metric of each class in percent, by Detectron2's names <metric>-<class>."""
    return {f"{metric}-{name}": 100 * value for name, value in zip(class_names, values)}


def overall_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics over all classes: by Detectron2's convention, those without a "-" in the name."""
    return {name: value for name, value in metrics.items() if "-" not in name}


def most_confused(matrix: np.ndarray, class_names: Sequence[str], similarity: np.ndarray | None = None) -> list[dict]:
    """List the 10 pairs of classes with the most pixels of the first taken for the second, the most confused first.

    Args:
        matrix: numbers of pixels [K, K + 1] or [K, K].
        similarity: of the classes, [K, K] in 0..1; it becomes a column, with 0 for predictions of no class.
    """
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    names = [*class_names, NO_CLASS]

    rows = []
    for index in np.argsort(-errors, axis=None)[:10]:
        truth, predicted = np.unravel_index(index, errors.shape)
        pixels = int(errors[truth, predicted])
        if pixels:
            share = 100 * pixels / matrix[truth].sum()
            row = {"is": names[truth], "taken for": names[predicted], "pixels": pixels, "% of it": round(share, 1)}
            if similarity is not None:
                row["similarity"] = round(float(similarity[truth, predicted]), 3) if predicted < len(matrix) else 0.0
            rows.append(row)
    return rows
