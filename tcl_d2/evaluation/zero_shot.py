"""mIoU of semantic segmentation over a whole data set's confusion matrix, as the unified zero-shot protocol has it."""

import logging
from collections import OrderedDict

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

logger = logging.getLogger(__name__)


def read_label(path: str) -> np.ndarray:
    """The values of a label file (palette, grey or 16-bit PNG), [H, W]; OSError names a file that cannot be read."""
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            label = np.array(image)
    except Exception as error:  # PIL raises many kinds
        raise OSError(f"Label {path} could not be read: {error}") from None
    if label.ndim != 2:
        raise OSError(f"Label {path} has {label.shape[2]} channels; expected one value a pixel (palette or grey PNG).")
    return label


class LabelRule:
    """Turns the values of label files into class indices, and refuses values that have no meaning."""

    def __init__(self, num_classes: int, label_map: dict[int, int] | None, ignore_label: int):
        rule = {k: k for k in range(num_classes)} if label_map is None else dict(label_map)
        rule.setdefault(ignore_label, ignore_label)
        wrong = [value for value in rule.values() if value != ignore_label and not 0 <= value < num_classes]
        if wrong:
            raise ValueError(f"The label rule names class {wrong[0]}; there are {num_classes} classes, from 0.")
        self.num_classes = num_classes
        self._table = np.full(max(rule) + 1, -1, np.int64)
        for value, target in rule.items():
            self._table[value] = num_classes if target == ignore_label else target

    def __call__(self, label: np.ndarray, path: str) -> np.ndarray:
        """Values [H, W] -> class indices, `num_classes` where ignored; ValueError names the file and a value."""
        if label.max(initial=0) >= len(self._table) or (mapped := self._table[label]).min(initial=0) < 0:
            known = set(np.flatnonzero(self._table >= 0).tolist())
            wrong = sorted(set(np.unique(label).tolist()) - known)
            raise ValueError(f"Label {path} has the value {wrong[0]}, which stands for no class of this data set.")
        return mapped


def confusion_matrix(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts [K, K], rows ground truth, of index maps int64 [H, W], K = num_classes; label K is ignored."""
    counts = torch.bincount((label * num_classes + prediction).flatten(), minlength=(num_classes + 1) * num_classes)
    return counts.view(num_classes + 1, num_classes)[:num_classes]


def summarize(matrix: np.ndarray, class_names: list[str]) -> OrderedDict:
    """Metrics in percent from a confusion matrix [K, K], rows ground truth.

    mIoU is the mean over classes that occur in prediction or ground truth; mACC, over classes in the ground truth.
    """
    matrix = matrix.astype(np.float64)
    hit, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = truth + predicted - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = hit / union, hit / truth  # nan for a class that does not occur
    total = truth.sum()
    if total == 0:
        raise ValueError("Nothing to evaluate: every pixel of the ground truth is ignored, or there was no image.")
    result = OrderedDict(
        mIoU=100 * np.nanmean(iou),
        fwIoU=100 * np.nansum(iou * truth) / total,
        mACC=100 * np.nanmean(accuracy),
        pACC=100 * hit.sum() / total,
    )
    result.update((f"IoU-{name}", 100 * value) for name, value in zip(class_names, iou))
    return result


class ZeroShotSemSegEvaluator(DatasetEvaluator):
    """Compares the argmax of `sem_seg` with the label files of a data set.

    The data set's metadata say how labels are read: `stuff_classes`, `ignore_label`, and optionally `label_map`
    (value in the file -> class index or ignore_label). Works for any data set that has these.
    """

    def __init__(self, dataset_name: str, distributed: bool = True):
        """
        Args:
            dataset_name: a registered data set.
            distributed: whether to add up the confusion matrices of all processes.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names = list(metadata.stuff_classes)
        self._rule = LabelRule(len(self.class_names), metadata.get("label_map"), metadata.get("ignore_label", 255))
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        size = len(self.class_names)
        self._matrix = torch.zeros(size, size, dtype=torch.int64)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: dicts with `sem_seg_file_name`.
            outputs: dicts with `sem_seg`, scores [K, H, W] at the label's size.

        Raises:
            OSError, ValueError: unreadable label, value out of range, or a size that differs; names the file.
        """
        for one, output in zip(inputs, outputs):
            path, scores = one["sem_seg_file_name"], output["sem_seg"]
            label = self._rule(read_label(path), path)
            if tuple(scores.shape) != (len(self.class_names), *label.shape):
                raise ValueError(
                    f"Label {path} is {label.shape} and the data set has {len(self.class_names)} classes, but the "
                    f"prediction is {tuple(scores.shape)}: image and label differ in size, or in classes."
                )
            prediction = scores.argmax(0)
            target = torch.from_numpy(label).to(prediction.device)
            self._matrix += confusion_matrix(prediction, target, len(self.class_names)).cpu()

    def evaluate(self) -> OrderedDict | None:
        """The metrics in percent, {"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>"}}; None off rank 0."""
        matrices = comm.gather(self._matrix) if self._distributed else [self._matrix]
        if self._distributed and not comm.is_main_process():
            return None
        result = summarize(sum(matrices).numpy(), self.class_names)
        rows = [(name, result[f"IoU-{name}"]) for name in self.class_names]
        table = tabulate(rows, headers=("class", "IoU"), floatfmt=".2f", tablefmt="pipe")
        logger.info("%s, IoU of each class (nan: it does not occur)\n%s", self.dataset_name, table)
        return OrderedDict(sem_seg=result)
