"""The evaluator of semantic segmentation: a whole dataset's confusion matrix, as in the unified zero-shot protocol."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from ..data.dataset_files import rows_by_file_name
from ..data.labels import LabelMapper
from ..segmentation.drawing import distinct_colors, draw_palette, save_picture
from ..utils.files import path_within
from ..words.datasets import dataset_class_names
from .build import EVALUATOR_REGISTRY
from .confusion import check_class_indices, compute_metrics, confusion_matrix, overall_metrics
from .measures import Measure, build_measures
from .progress import EvaluationProgress, SkippedImages

logger = logging.getLogger(__name__)
_SHOWN = 10  # names in a warning


def prediction_path(folder: Path, dataset_dict: Mapping[str, Any]) -> Path:
    """Return the file of an image's predicted labels: by its ID or, where it has none, by its file's name."""
    image_id = dataset_dict.get("image_id", Path(dataset_dict["file_name"]).stem)
    return path_within(folder, f"{image_id}.png", f"the image_id of {dataset_dict['file_name']}")


def inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Return the folder for the files of a dataset's evaluation."""
    return Path(cfg.OUTPUT_DIR, "inference", dataset_name.strip("/.").replace("/", "_"))


@EVALUATOR_REGISTRY.register("zero_shot_sem_seg", "sem_seg", "cityscapes_sem_seg")
class ZeroShotSemSegEvaluator(DatasetEvaluator):
    """Compares predicted labels with the label files of a dataset, Detectron2's own ones included.

    The dataset's metadata say how labels are read: `stuff_classes`, `ignore_label`, and optionally `label_map` (value
    in the file -> class index or ignore_label). It works for any dataset that has these, and rows with `file_name` and
    `sem_seg_file_name`.

    mIoU is the protocol's: over the classes that occur in prediction or ground truth. Detectron2's SemSegEvaluator
    leaves out classes that are predicted but never there, so its mIoU is the same or higher.

    `measures` add further metrics and tables. A subclass adds a metric in `compute_metrics`, and the statistics for it
    in `empty_statistics` and `update_statistics`.

    Attributes:
        class_names: K class words.
        needs_similarity: whether `set_similarity` must be called before `evaluate`.
        statistics: arrays by name, summed over the images: those of the measures, and

            confusion_matrix: int64 [K, K + 1], pixels by ground truth (rows) and prediction; the last column is of no
                class.
    """

    @configurable
    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | Path | None = None,
        *,
        measures: Sequence[Measure] = (),
    ):
        """Build the evaluator of a registered dataset.

        Args:
            distributed: whether to sum the statistics of all processes.
            output_dir: predicted labels are saved in its folder predictions/, as palette PNGs (see prediction_path);
                None to save none.

        Raises:
            ValueError: two rows of the dataset have one `file_name`, or its labels cannot be read.
        """
        # How labels are read
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names = list(metadata.stuff_classes)
        self._label_mapper = LabelMapper.of(dataset_name)
        self._dataset_dicts = rows_by_file_name(dataset_name, DatasetCatalog.get(dataset_name))

        # Optional parts
        self._distributed = distributed
        self._predictions = None if output_dir is None else Path(output_dir, "predictions")
        if self._predictions is not None:
            self._check_prediction_paths(self._predictions)
        self._measures = measures
        self.needs_similarity = self._lacks_similarity()
        self._colors = metadata.get("stuff_colors") or distinct_colors(len(self.class_names))
        self.attach(progress=None, skipped=None)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None) -> dict:
        folder = Path(output_folder or inference_folder(cfg, dataset_name))
        return {
            "dataset_name": dataset_name,
            "output_dir": folder if cfg.TEST.ZERO_SHOT.SAVE_PREDICTIONS else None,
            "measures": build_measures(cfg, dataset_name),
        }

    def attach(self, progress: EvaluationProgress | None, skipped: SkippedImages | None) -> None:
        """Reset, and go on from the images that were done before; every process must call it.

        Args:
            progress: has the earlier images, and keeps those to come; None for neither.
            skipped: counts images whose labels are broken or do not fit; None makes them errors.
        """
        self._progress = progress
        self._skipped = skipped
        if progress is not None:
            progress.restore(self.empty_statistics())
        self.reset()

    # ------------------------------------------------------------------------------------ statistics and metrics

    def set_similarity(self, similarity: np.ndarray) -> None:
        """Set the similarity of the classes for the measures that need it; call it before `evaluate`."""
        for measure in self._measures:
            measure.similarity = similarity

    def empty_statistics(self) -> dict[str, np.ndarray]:
        """Return the statistics of no image: arrays of zeros by name."""
        num_classes = len(self.class_names)
        statistics = {"confusion_matrix": np.zeros((num_classes, num_classes + 1), np.int64)}
        for measure in self._measures:
            statistics.update(measure.empty_statistics())
        return statistics

    def update_statistics(self, prediction: Tensor, label: Tensor) -> None:
        """Add an image to the statistics.

        Args:
            prediction: class indices, integers [H, W].
            label: class indices of the ground truth, integers [H, W] on the same device; K where ignored.
        """
        counts = confusion_matrix(prediction, label, len(self.class_names))
        self.statistics["confusion_matrix"] += counts.cpu().numpy()
        for measure in self._measures:
            measure.update_statistics(self.statistics, prediction, label)

    def compute_metrics(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Compute the metrics, in percent, from the statistics of all images."""
        metrics = compute_metrics(statistics["confusion_matrix"], self.class_names)
        for measure in self._measures:
            metrics.update(measure.compute_metrics(statistics))
        return metrics

    # ------------------------------------------------------------------------------------ Detectron2's interface

    def reset(self) -> None:
        self.statistics = self.empty_statistics()
        self._done: list[str] = []
        self._done_before: set[str] = set()
        if self._progress is None:
            return

        # All processes pass over what was done before; it counts once
        self._done_before.update(self._progress.done)
        if comm.is_main_process():
            self._done += self._progress.done
            for name, array in self._progress.statistics.items():
                self.statistics[name] += array

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add images to the statistics.

        Args:
            inputs: with `file_name`.
            outputs: with one of these:

                sem_seg_labels: class indices at the label's size, integers [H, W].
                sem_seg: scores [K, H, W], or [K + 1, H, W], the last of no class.

                Both may be tensors or arrays of NumPy.

        Raises:
            OSError, ValueError: a label or prediction is missing or broken, or does not fit; names the file.
        """
        for input_per_image, output in zip(inputs, outputs):
            file_name = input_per_image["file_name"]
            if file_name in self._done_before:
                continue
            self._check_dataset(file_name, output.get("dataset_name", self.dataset_name))
            prediction = self._predicted_labels(input_per_image, output)

            # Read the label
            try:
                label = self._read_label(file_name, tuple(prediction.shape))
            except (OSError, ValueError) as error:
                if self._skipped is None:
                    raise
                self._skipped.add(file_name, error)
                continue

            # Count and keep
            self.update_statistics(prediction, label.to(prediction.device))
            if self._predictions is not None:
                path = prediction_path(self._predictions, self._dataset_dicts[file_name])
                save_picture(draw_palette(prediction.cpu().numpy(), self._colors), path)
            if self._progress is not None:
                self._done.append(file_name)
                if self._progress.is_due:
                    self.save_progress()

    def evaluate(self) -> dict[str, dict] | None:
        """Return metrics in percent (`sem_seg`) and the measures' tables by title (`tables`); None off rank 0.

        Raises:
            ValueError: there was nothing to evaluate, or a measure lacks the similarity of the classes.
        """
        self.save_progress()
        if self._lacks_similarity():
            raise ValueError(
                f"The measures of '{self.dataset_name}' need the similarity of its classes: call set_similarity first, "
                "or name a file in TEST.ZERO_SHOT.SIMILARITY."
            )

        # Sum over the processes
        statistics_by_process = [self.statistics]
        if self._distributed:
            statistics_by_process = comm.gather(self.statistics)
            if not comm.is_main_process():
                return None
        total = {
            name: sum((statistics[name] for statistics in statistics_by_process), np.zeros_like(array))
            for name, array in self.statistics.items()
        }

        # Compute
        results: dict[str, dict] = {"sem_seg": self.compute_metrics(total)}
        self._warn_of_absent_classes(total["confusion_matrix"])
        tables = {title: rows for measure in self._measures for title, rows in measure.compute_tables(total).items()}
        if tables:
            results["tables"] = tables
        self._log(results["sem_seg"], tables)
        return results

    # ------------------------------------------------------------------------------------ steps

    def save_progress(self) -> None:
        """Save what this process has done, if progress is kept."""
        if self._progress is not None:
            self._progress.save(self.statistics, self._done)

    def _check_prediction_paths(self, folder: Path) -> None:
        """Raise a ValueError unless each image's predicted labels have their own file."""
        files = {}
        for file_name, dataset_dict in self._dataset_dicts.items():
            other = files.setdefault(prediction_path(folder, dataset_dict), file_name)
            if other != file_name:
                raise ValueError(
                    f"Dataset '{self.dataset_name}': the predictions for {other} and {file_name} would have one file. "
                    "Give its rows an 'image_id'."
                )

    def _lacks_similarity(self) -> bool:
        return any(measure.needs_similarity and measure.similarity is None for measure in self._measures)

    def _check_dataset(self, file_name: str, dataset_name: str) -> None:
        """Raise a ValueError if the model looked for another dataset's classes."""
        if dataset_name != self.dataset_name and dataset_class_names(dataset_name) != self.class_names:
            raise ValueError(
                f"The prediction for {file_name} is of the classes of '{dataset_name}', not of '{self.dataset_name}', "
                f"which is evaluated: call model.set_dataset('{self.dataset_name}') before, as "
                "tcl_d2.engine.Trainer.test does."
            )

    def _predicted_labels(self, input_per_image: dict, output: dict) -> Tensor:
        """Return the predicted labels, integers [H, W]; a ValueError names the image if they do not fit."""
        name = f"The prediction for {input_per_image['file_name']}"
        if "sem_seg_labels" in output:
            labels = _as_tensor(output["sem_seg_labels"])
        elif "sem_seg" in output:
            labels = self._best_classes(_as_tensor(output["sem_seg"]), name)
        else:
            raise ValueError(f"{name} has neither 'sem_seg_labels' nor 'sem_seg', but: {', '.join(output)}.")

        check_class_indices(labels, len(self.class_names), name)
        expected = [input_per_image.get(key, side) for key, side in zip(("height", "width"), labels.shape)]
        if list(labels.shape) != expected:
            raise ValueError(f"{name} is {list(labels.shape)}, but the image {expected} (height, width).")
        return labels

    def _best_classes(self, scores: Tensor, name: str) -> Tensor:
        num_classes = len(self.class_names)
        if not isinstance(scores, Tensor) or scores.ndim != 3:
            given = f"{type(scores).__name__} {list(getattr(scores, 'shape', ()))}"
            raise ValueError(f"{name} has as scores: {given}; expected a tensor [{num_classes}, H, W].")
        if len(scores) not in (num_classes, num_classes + 1):  # one more for what is of no class
            raise ValueError(f"{name} has {len(scores)} classes; '{self.dataset_name}' has {num_classes}.")

        labels = scores.argmax(0)
        if scores.gather(0, labels[None]).isnan().any():  # argmax takes nan for the largest
            raise ValueError(f"{name} has scores that are nan.")
        return labels

    def _read_label(self, file_name: str, size: tuple[int, ...]) -> Tensor:
        # Not from the input: Detectron2's mapper takes the label's path away
        path = self._dataset_dicts.get(file_name, {}).get("sem_seg_file_name")
        if path is None:
            raise ValueError(f"Dataset '{self.dataset_name}' has no label ('sem_seg_file_name') of image {file_name}.")

        label = self._label_mapper.read(path)
        if label.shape != size:
            raise ValueError(
                f"Label {path} is {label.shape}, but the prediction is {size}: image and label differ in size."
            )
        return torch.from_numpy(label)

    def _warn_of_absent_classes(self, confusion_matrix: np.ndarray) -> None:
        absent = [name for name, count in zip(self.class_names, confusion_matrix.sum(1)) if not count]
        if not absent:
            return

        names = ", ".join(absent[:_SHOWN]) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
        classes = f"'{self.dataset_name}': {len(absent)} of {len(self.class_names)} classes"
        paths = [dataset_dict.get("sem_seg_file_name") for dataset_dict in self._dataset_dicts.values()]
        masks = self._label_mapper.describe_masks(list(filter(None, paths)))
        logger.warning("%s occur in no label that was evaluated: %s. %s", classes, names, masks)

    def _log(self, metrics: Mapping[str, float], tables: Mapping[str, Sequence[Mapping]]) -> None:
        rows = [(name, metrics[f"IoU-{name}"], metrics[f"ACC-{name}"]) for name in self.class_names]
        logger.info(
            "%s, %%: %s\nIoU and accuracy of each class (nan: it does not occur)\n%s",
            self.dataset_name,
            ", ".join(f"{name} {value:.2f}" for name, value in overall_metrics(metrics).items()),
            tabulate(rows, headers=("class", "IoU", "ACC"), floatfmt=".2f", tablefmt="pipe"),
        )
        for title, rows in tables.items():
            logger.info("%s, %s\n%s", self.dataset_name, title, tabulate(rows, headers="keys", tablefmt="pipe"))


class SharedImagesEvaluator(DatasetEvaluator):
    """Evaluates several datasets of the same images in one pass, each with its own evaluator."""

    def __init__(self, evaluators: Mapping[str, DatasetEvaluator], dataset_dicts: Mapping[str, Sequence[dict]]):
        """Join evaluators by dataset, in the order in which the model gives `by_dataset`."""
        self._evaluators = evaluators
        self._by_file_name = {name: rows_by_file_name(name, dataset_dicts[name]) for name in evaluators}

    def reset(self) -> None:
        for evaluator in self._evaluators.values():
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Give each dataset's evaluator the images with that dataset's labels and predictions."""
        for i, (name, evaluator) in enumerate(self._evaluators.items()):
            dataset_dicts = self._by_file_name[name]
            dataset_inputs = [
                {**input_per_image, **dataset_dicts.get(input_per_image["file_name"], {})} for input_per_image in inputs
            ]
            evaluator.process(dataset_inputs, [output["by_dataset"][i] for output in outputs])

    def evaluate(self) -> dict[str, dict | None]:
        """Return the results of each dataset's evaluator, by dataset."""
        return {name: evaluator.evaluate() for name, evaluator in self._evaluators.items()}


def _as_tensor(values: Any) -> Any:
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values
