"""Evaluation of datasets: those with the same images share one pass, in which each image is segmented once."""

import logging
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import nn

from ..config.loading import dataset_config
from ..data.dataset_files import subsample
from ..modeling import ZeroShotSegmentor
from ..modeling.segmentor.objects import OUTPUTS
from ..runs.signals import SignalCatcher
from ..utils.tensors import digest_weights
from ..version import __version__
from ..words.vocabulary import dataset_vocabulary, join_vocabularies
from .dataset_settings import words_from_config
from .objects import needed_outputs
from .progress import EvaluationProgress, SkippedImages, fingerprint, stat_files
from .similarity import class_similarity
from .zero_shot import SharedImagesEvaluator, ZeroShotSemSegEvaluator, inference_folder

logger = logging.getLogger(__name__)
Evaluators = Mapping[str, DatasetEvaluator | None]  # by dataset; None to segment without evaluating
BuildLoader = Callable[[CfgNode, str], Iterable[list[dict]]]
# Detectron2's own keys in MODEL that zero-shot segmentation reads
_MODEL_KEYS = ("META_ARCHITECTURE", "WEIGHTS", "DEVICE", "PIXEL_MEAN", "PIXEL_STD")


def evaluate_datasets(
    cfg: CfgNode, model: nn.Module, evaluators: Evaluators, build_loader: BuildLoader, share_images: bool, resume: bool
) -> dict[str, dict]:
    """Evaluate each dataset with its own settings; the model then has the protocol and classes that it had before.

    Args:
        model: any that gives what the evaluators read; one without `set_dataset` runs as in Detectron2's own `test`.
        share_images: whether one loader may serve all datasets of the same images.
        resume: whether to go on from what a stopped evaluation of the same model and settings has done.

    Returns:
        by dataset: {"sem_seg": metrics in percent, "images": count, "skipped": count}.
    """
    share_images = share_images and _takes_datasets(model)
    groups = group_by_images(cfg, evaluators) if share_images else [[name] for name in evaluators]
    results = {}
    has_settings = isinstance(model, ZeroShotSegmentor)
    with model.keep_settings() if has_settings else nullcontext():
        for i, group in enumerate(groups, start=1):
            logger.info("Pass %d of %d over images: %s", i, len(groups), ", ".join(group))
            group_evaluators = {name: evaluators[name] or DatasetEvaluators([]) for name in group}
            results |= _run_pass(dataset_config(cfg, group[0]), model, group_evaluators, build_loader, resume)
    return results


def group_by_images(cfg: CfgNode, evaluators: Evaluators) -> list[list[str]]:
    """Group datasets of the same images, settings and objects, for which masks are made once.

    Images whose annotated sizes differ are not the same: the mapper compares those of the first dataset alone.
    """
    groups = {}
    for name, evaluator in evaluators.items():
        rows = DatasetCatalog.get(name)
        images = tuple((row["file_name"], row.get("height"), row.get("width")) for row in rows)
        settings = str(cfg.TEST.ZERO_SHOT.BY_DATASET.get(name))
        objects = needed_outputs(evaluator) & set(OUTPUTS)
        groups.setdefault((images, settings, objects), []).append(name)
    return list(groups.values())


def load_test_dicts(cfg: CfgNode, dataset_name: str) -> list[dict]:
    """Return the images of a dataset that are evaluated: all, or TEST.ZERO_SHOT.MAX_IMAGES of them."""
    return subsample(DatasetCatalog.get(dataset_name), cfg.TEST.ZERO_SHOT.MAX_IMAGES)


def evaluation_settings(cfg: CfgNode) -> dict:
    """Return the versions and the part of a configuration that zero-shot segmentation depends on."""
    others = get_cfg().MODEL.keys() - set(_MODEL_KEYS)
    return {
        "tcl_d2": __version__,
        "torch": torch.__version__,
        "MODEL": {key: value for key, value in cfg.MODEL.items() if key not in others},
        "INPUT": {key: cfg.INPUT[key] for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST", "RESIZE_TEST")},
        "TEST.ZERO_SHOT": cfg.TEST.ZERO_SHOT,
    }


# ------------------------------------------------------------------------------------------- one pass


def _run_pass(
    cfg: CfgNode, model: nn.Module, evaluators: Mapping[str, DatasetEvaluator], build_loader: BuildLoader, resume: bool
) -> dict[str, dict]:
    """Segment the images that the datasets share; `cfg` has their settings."""
    first = next(iter(evaluators))
    dataset_dicts = {name: load_test_dicts(cfg, name) for name in evaluators}
    file_names = {dataset_dict["file_name"] for dataset_dict in dataset_dicts[first]}
    skipped = {name: SkippedImages() for name in evaluators if cfg.TEST.ZERO_SHOT.SKIP_BROKEN}

    # Set up the model, and go on from what was done before
    progress = _build_progress(cfg, model, evaluators, dataset_dicts, resume)
    if _takes_datasets(model):
        _set_classes(cfg, model, evaluators)
    for name, kept in progress.items():
        evaluators[name].attach(kept, skipped.get(name))
    done = set()
    if len(progress) == len(evaluators):
        done = set.intersection(*(set(kept.done) for kept in progress.values()))
    if done:
        logger.info("%d of %d images were done before", len(done), len(file_names))

    # Segment the images that are left
    is_shared = len(evaluators) > 1
    evaluator = SharedImagesEvaluator(evaluators, dataset_dicts) if is_shared else evaluators[first]
    num_images = len(done)
    if num_images < len(file_names):
        keepers = [evaluators[name] for name in progress]
        loader = build_loader(cfg, first)
        loader = RemainingImages(loader, file_names - done, _request(evaluators), skipped.values(), keepers)
        results = inference_on_dataset(model, loader, evaluator)
        num_images += sum(comm.gather(loader.num_images))
    else:
        results = evaluator.evaluate()

    results = results if is_shared else {first: results}
    return {name: _with_counts(results[name], num_images, skipped.get(name)) for name in evaluators}


def _with_counts(metrics: Mapping | None, num_images: int, skipped: SkippedImages | None) -> dict:
    """Return a dataset's metrics with the number of its images that were evaluated, and of the skipped ones."""
    num_skipped = skipped.total() if skipped else 0
    return {**(metrics or {}), "images": num_images - num_skipped, "skipped": num_skipped}


def _takes_datasets(model: nn.Module) -> bool:
    """Return whether a model is told which dataset is meant; another one knows its classes by itself."""
    return hasattr(model, "set_dataset")


def _set_classes(cfg: CfgNode, model: nn.Module, evaluators: Evaluators) -> None:
    """Set the classes of the datasets and their settings, and give evaluators the similarity of classes."""
    if cfg.TEST.ZERO_SHOT.BY_DATASET:
        model.set_protocol(**model.protocol_from_config(cfg))
    class_words = {name: words_from_config(cfg, name) for name in evaluators}
    model.set_dataset(*evaluators, class_words=class_words)

    for name, evaluator in evaluators.items():
        if isinstance(evaluator, ZeroShotSemSegEvaluator) and evaluator.needs_similarity:
            words, (subset,) = join_vocabularies([dataset_vocabulary(name, class_words[name])])
            evaluator.set_similarity(class_similarity(subset, model.embed_vocabulary(words, model.templates)))


def _build_progress(
    cfg: CfgNode, model: nn.Module, evaluators: Evaluators, dataset_dicts: Mapping[str, list[dict]], resume: bool
) -> dict[str, EvaluationProgress]:
    """Return the progress that each ZeroShotSemSegEvaluator keeps; other evaluators keep none."""
    # All of MODEL and TEST.ZERO_SHOT counts, since nobody can tell of a new key whether results depend on it: a new
    # key, or another value of any, restarts an evaluation that is resumed
    settings = {**evaluation_settings(cfg), "MODEL": cfg.MODEL}
    weights = digest_weights(model)

    progress = {}
    for name, evaluator in evaluators.items():
        if not isinstance(evaluator, ZeroShotSemSegEvaluator):
            other = f"The {type(evaluator).__name__} of '{name}'"
            message = f"{other} keeps no progress: --resume evaluates all images again"
            log_first_n(logging.INFO, message, name=__name__, key="message")
            continue
        facts = {
            "settings": settings,
            "data": dataset_dicts[name],
            "metadata": MetadataCatalog.get(name).as_dict(),
            "words": words_from_config(cfg, name),
            "files": stat_files(dataset_dicts[name]),
        }
        progress[name] = EvaluationProgress(inference_folder(cfg, name), fingerprint(weights, **facts), resume)
    return progress


def _request(evaluators: Evaluators) -> dict[str, bool]:
    """Return what the model is asked for with each image: labels alone where no evaluator needs scores, and objects."""
    outputs = frozenset().union(*map(needed_outputs, evaluators.values()))
    return {"labels_only": "sem_seg" not in outputs, **dict.fromkeys(outputs & set(OUTPUTS), True)}


@dataclass
class RemainingImages:
    """Batches of the images that are left to do, without broken ones; a signal ends the run with its progress saved.

    Attributes:
        file_names: the images that are left.
        request: goes into the input of each image.
        skipped: each counts the images that BenchmarkMapper could not read.
        evaluators: save their progress when a signal stops the run.
        num_images: images that this process has given or skipped.
    """

    loader: Iterable[list[dict]]
    file_names: Collection[str]
    request: Mapping[str, object]
    skipped: Collection[SkippedImages]
    evaluators: Collection[ZeroShotSemSegEvaluator]
    num_images: int = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        with SignalCatcher() as catcher:
            for batch in self.loader:
                remaining = [row for row in batch if row["file_name"] in self.file_names]
                readable = self._drop_broken(remaining) if self.skipped else remaining
                if readable:
                    yield [{**row, **self.request} for row in readable]
                self.num_images += len(remaining)
                if catcher.number:
                    self._stop(catcher.number)

    def _drop_broken(self, rows: Sequence[dict]) -> list[dict]:
        for row in rows:
            if "error" in row:
                for skipped in self.skipped:
                    skipped.add(row["file_name"], row["error"])
        return [row for row in rows if "error" not in row]

    def _stop(self, number: int) -> None:
        for evaluator in self.evaluators:
            evaluator.save_progress()
        name = signal.Signals(number).name
        logger.info("Stopped by %s, and what is done is saved: --eval-only --resume goes on from it", name)
        sys.exit(128 + number)
