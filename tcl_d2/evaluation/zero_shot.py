"""mIoU of semantic segmentation over a whole data set's confusion matrix, as the unified zero-shot protocol has it."""

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from ..data.labels import LabelMapper
from ..utils.visualizer import save_palette_png
from .progress import EvaluationProgress
from .skipped import SkippedImages

logger = logging.getLogger(__name__)
METRICS = ("mIoU", "fwIoU", "mACC", "pACC")


def confusion_matrix(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts [K, K], rows ground truth, of integer index maps [H, W], K = num_classes; label K is ignored."""
    # In int32 where the indices fit: half the memory traffic.
    kind = torch.int32 if num_classes < 46_000 else torch.int64
    index = torch.add(prediction.to(kind), label.to(kind), alpha=num_classes)
    counts = torch.bincount(index.flatten(), minlength=(num_classes + 1) * num_classes)
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
    """Compares predicted labels with the label files of a data set.

    The data set's metadata say how labels are read: `stuff_classes`, `ignore_label`, and optionally `label_map`
    (value in the file -> class index or ignore_label). Works for any data set that has these.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        progress: EvaluationProgress | None = None,
        predictions: Path | None = None,
        skipped: SkippedImages | None = None,
    ):
        """
        Args:
            dataset_name: a registered data set.
            distributed: whether to add up the confusion matrices of all processes.
            progress: where to keep what is done, and to go on from; None: nowhere.
            predictions: folder for predicted labels as palette PNGs, by image ID; None: not saved.
            skipped: where to count images whose labels are broken or do not fit; None: they are errors.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names = list(metadata.stuff_classes)
        self._colors = metadata.get("stuff_colors", [])
        self._rule = LabelMapper.of(dataset_name)
        self._distributed = distributed
        self._progress = progress
        self._predictions = predictions
        self._skipped = skipped
        self.reset()

    def reset(self) -> None:
        size = len(self.class_names)
        self._matrix = torch.zeros(size, size, dtype=torch.int64)
        self._done: list[str] = []
        self._before = set(self._progress.done) if self._progress is not None else set()
        if self._progress is not None and self._progress.matrix is not None and comm.is_main_process():
            self._matrix += torch.from_numpy(self._progress.matrix)
            self._done += self._progress.done

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: dicts with `sem_seg_file_name` and, where progress or predictions are kept, `image_id` (str).
            outputs: dicts with `sem_seg_labels`, integers [H, W] at the label's size, or `sem_seg`, scores [K, H, W].

        Raises:
            OSError, ValueError: unreadable label, value out of range, or a size that differs; names the file.
        """
        for one, output in zip(inputs, outputs):
            if one.get("image_id") in self._before:
                continue
            prediction = self._labels(one, output)
            try:
                label = self._read_label(one["sem_seg_file_name"], tuple(prediction.shape))
            except (OSError, ValueError) as error:
                if self._skipped is None:
                    raise
                self._skipped.add(one.get("file_name", one["sem_seg_file_name"]), error)
                continue
            target = torch.from_numpy(label).to(prediction.device)
            self._matrix += confusion_matrix(prediction, target, len(self.class_names)).cpu()
            if self._predictions is not None:
                save_palette_png(prediction.cpu().numpy(), self._colors, self._predictions / f"{one['image_id']}.png")
            if self._progress is not None:
                self._done.append(one["image_id"])
                self._progress.save_now_and_then(self._matrix.numpy(), self._done)

    def _read_label(self, path: str, size: tuple[int, int]) -> np.ndarray:
        label = self._rule.read(path)
        if label.shape != size:
            raise ValueError(
                f"Label {path} is {label.shape}, but the prediction is {size}: image and label differ in size."
            )
        return label

    def _labels(self, one: dict, output: dict) -> torch.Tensor:
        if "sem_seg_labels" in output:
            return output["sem_seg_labels"]
        scores = output["sem_seg"]
        if len(scores) != len(self.class_names):
            raise ValueError(
                f"The prediction for {one['sem_seg_file_name']} has {len(scores)} classes; '{self.dataset_name}' has "
                f"{len(self.class_names)}."
            )
        return scores.argmax(0)

    def evaluate(self) -> OrderedDict | None:
        """The metrics in percent, {"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>"}}; None off rank 0."""
        if self._progress is not None:
            self._progress.save(self._matrix.numpy(), self._done)
        matrices = comm.gather(self._matrix) if self._distributed else [self._matrix]
        if self._distributed and not comm.is_main_process():
            return None
        result = summarize(sum(matrices).numpy(), self.class_names)
        rows = [(name, result[f"IoU-{name}"]) for name in self.class_names]
        logger.info(
            "%s, %%: %s\nIoU of each class (nan: it does not occur)\n%s",
            self.dataset_name,
            ", ".join(f"{metric} {result[metric]:.2f}" for metric in METRICS),
            tabulate(rows, headers=("class", "IoU"), floatfmt=".2f", tablefmt="pipe"),
        )
        return OrderedDict(sem_seg=result)


class SharedImagesEvaluator(DatasetEvaluator):
    """Evaluates several data sets of the same images in one pass: each has its own evaluator."""

    def __init__(self, evaluators: dict[str, ZeroShotSemSegEvaluator], rows: dict[str, list[dict]]):
        """
        Args:
            evaluators, rows: of each data set, in the order in which the model gives `by_dataset`; the rows as its
                catalog entry gives them.
        """
        self._evaluators = evaluators
        self._rows = {name: {one["image_id"]: one for one in rows[name]} for name in evaluators}

    def reset(self) -> None:
        for evaluator in self._evaluators.values():
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for i, (name, evaluator) in enumerate(self._evaluators.items()):
            own = [{**one, **self._rows[name][one["image_id"]]} for one in inputs]
            evaluator.process(own, [output["by_dataset"][i] for output in outputs])

    def evaluate(self) -> dict[str, OrderedDict | None]:
        """{data set: what its evaluator gives}."""
        return {name: evaluator.evaluate() for name, evaluator in self._evaluators.items()}
