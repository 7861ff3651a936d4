"""Evaluation of datasets: those with the same images share one pass, in which each image is segmented once."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import nn
from torch.utils.data import DataLoader

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
from .together import EvaluatorsInTurn, ModelsInTurn, Turn
from .zero_shot import SharedImagesEvaluator, ZeroShotSemSegEvaluator, inference_folder

logger = logging.getLogger(__name__)
Evaluators = Mapping[str, DatasetEvaluator | Any]  # by dataset; Any may be None, to segment without evaluating
BuildLoader = Callable[[CfgNode, str], DataLoader]
# Detectron2's own keys in MODEL that zero-shot segmentation reads
_MODEL_KEYS = ("META_ARCHITECTURE", "WEIGHTS", "DEVICE", "PIXEL_MEAN", "PIXEL_STD")


@dataclass(frozen=True)
class Evaluation:
    """A model to evaluate.

    Attributes:
        model: any that gives what the evaluators read; one without `set_dataset` runs as in Detectron2's own `test`.
    """

    cfg: CfgNode
    model: nn.Module
    evaluators: Evaluators

    @property
    def takes_datasets(self) -> bool:
        """Whether the model is told which dataset is meant; another one knows its classes by itself."""
        return hasattr(self.model, "set_dataset")

    def of_group(self, names: Sequence[str]) -> "Evaluation":
        """Return the evaluation of datasets that share their images, with their settings."""
        evaluators = {name: self.evaluators[name] or DatasetEvaluators([]) for name in names}
        return Evaluation(dataset_config(self.cfg, names[0]), self.model, evaluators)


def evaluate_datasets(
    evaluations: Sequence[Evaluation], build_loader: BuildLoader, share_images: bool, resume: bool
) -> list[dict[str, dict]]:
    """Evaluate models on each dataset with its own settings; they then have the protocol and classes as before.

    Args:
        evaluations: of one model, or of several on the same datasets that `group_configs` puts together.
        share_images: whether one loader may serve all datasets of the same images.
        resume: whether to go on from what a stopped evaluation of the same model and settings has done.

    Returns:
        for each model, by dataset: {"sem_seg": metrics in percent, "images": count, "skipped": count}.
    """
    share_images = share_images and all(evaluation.takes_datasets for evaluation in evaluations)
    groups = [[name] for name in evaluations[0].evaluators]
    if share_images:
        groups = group_by_images([evaluation.cfg for evaluation in evaluations], evaluations[0].evaluators)
    results = [{} for _ in evaluations]
    with ExitStack() as stack:
        for evaluation in evaluations:
            if isinstance(evaluation.model, ZeroShotSegmentor):
                stack.enter_context(evaluation.model.keep_settings())
        for i, group in enumerate(groups, start=1):
            logger.info("Pass %d of %d over images: %s", i, len(groups), ", ".join(group))
            group_evaluations = [evaluation.of_group(group) for evaluation in evaluations]
            for model_results, new in zip(results, _run_pass(group_evaluations, build_loader, resume)):
                model_results |= new
    return results


def group_by_images(cfgs: Sequence[CfgNode], evaluators: Evaluators) -> list[list[str]]:
    """Group datasets of the same images, settings and objects, for which masks are made once.

    Images whose annotated sizes differ are not the same: the mapper compares those of the first dataset alone.
    """
    groups = {}
    for name, evaluator in evaluators.items():
        rows = DatasetCatalog.get(name)
        images = tuple((row["file_name"], row.get("height"), row.get("width")) for row in rows)
        settings = str([cfg.TEST.ZERO_SHOT.BY_DATASET.get(name) for cfg in cfgs])
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


class _Share:
    """A model's share of a pass: what it has done before, and what is left.

    Attributes:
        progress: what the evaluators keep on disk, by dataset.
        skipped: counts of broken images by dataset, where they are left out.
        done, left: images by file name.
        turn: to segment those that are left.
    """

    def __init__(self, evaluation: Evaluation, resume: bool):
        """Set up the model, and go on from what was done before."""
        cfg, model, evaluators = evaluation.cfg, evaluation.model, evaluation.evaluators
        dataset_dicts = {name: load_test_dicts(cfg, name) for name in evaluators}
        self.skipped = {name: SkippedImages() for name in evaluators if cfg.TEST.ZERO_SHOT.SKIP_BROKEN}
        self.progress = _build_progress(cfg, model, evaluators, dataset_dicts, resume)
        if evaluation.takes_datasets:
            _set_classes(cfg, model, evaluators)
        for name, evaluator in evaluators.items():
            if isinstance(evaluator, ZeroShotSemSegEvaluator):
                evaluator.attach(self.progress[name], self.skipped.get(name))

        # What is left
        first = next(iter(evaluators))
        file_names = {dataset_dict["file_name"] for dataset_dict in dataset_dicts[first]}
        self.done = set()
        if len(self.progress) == len(evaluators):
            self.done = set.intersection(*(set(kept.done) for kept in self.progress.values()))
        if self.done:
            logger.info("%d of %d images were done before", len(self.done), len(file_names))
        self.left = file_names - self.done

        self.evaluators = evaluators
        is_shared = len(evaluators) > 1
        evaluator = SharedImagesEvaluator(evaluators, dataset_dicts) if is_shared else evaluators[first]
        self.turn = Turn(model, evaluator, self.left, _request(evaluators))

    @property
    def keepers(self) -> list[ZeroShotSemSegEvaluator]:
        """The evaluators that keep progress."""
        return [evaluator for evaluator in self.evaluators.values() if isinstance(evaluator, ZeroShotSemSegEvaluator)]

    def finish(self, results: Any, num_images: int) -> dict[str, dict]:
        """Return the metrics of each dataset with its numbers of images.

        Args:
            results: of the turn's evaluator.
            num_images: of this run.
        """
        results = results if len(self.evaluators) > 1 else {next(iter(self.evaluators)): results}
        total = len(self.done) + num_images
        return {name: _with_counts(results[name], total, self.skipped.get(name)) for name in self.evaluators}


def _run_pass(evaluations: Sequence[Evaluation], build_loader: BuildLoader, resume: bool) -> list[dict[str, dict]]:
    """Segment the images that the datasets share; the configurations have their settings."""
    shares = [_Share(evaluation, resume) for evaluation in evaluations]
    active = [share for share in shares if share.left]
    results, counts = {}, {}
    if active:
        turns = [share.turn for share in active]
        cfg, first = evaluations[0].cfg, next(iter(evaluations[0].evaluators))
        loader = RemainingImages(build_loader(cfg, first), active)
        if len(turns) == 1:
            results[active[0]] = inference_on_dataset(turns[0].model, loader, turns[0].evaluator)
        else:
            results |= zip(active, inference_on_dataset(ModelsInTurn(turns), loader, EvaluatorsInTurn(turns)))
        counts |= zip(active, (sum(comm.gather(count)) for count in loader.counts))

    for share in shares:
        if share not in results:
            results[share] = share.turn.evaluator.evaluate()
    return [share.finish(results[share], counts.get(share, 0)) for share in shares]


def _with_counts(metrics: Mapping | None, num_images: int, skipped: SkippedImages | None) -> dict:
    """Return a dataset's metrics with the number of its images that were evaluated, and of the skipped ones."""
    num_skipped = skipped.total() if skipped else 0
    return {**(metrics or {}), "images": num_images - num_skipped, "skipped": num_skipped}


def _set_classes(cfg: CfgNode, model: Any, evaluators: Evaluators) -> None:
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


class RemainingImages:
    """Batches of the images that are left to do, without broken ones; a signal ends the run with its progress saved.

    Attributes:
        counts: for each share, the images that this process has given or skipped.
    """

    def __init__(self, loader: DataLoader, shares: Sequence[_Share]):
        """Choose from a loader's images what any of the shares has left.

        With one share, the inputs have its request; several models make their own.
        """
        self.loader = loader
        self.shares = shares
        self.counts = [0] * len(shares)
        self._request = shares[0].turn.request if len(shares) == 1 else {}

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        with SignalCatcher() as catcher:
            for batch in self.loader:
                remaining = [row for row in batch if any(row["file_name"] in share.left for share in self.shares)]
                readable = self._drop_broken(remaining)
                if readable:
                    yield [{**row, **self._request} for row in readable]
                for i, share in enumerate(self.shares):
                    self.counts[i] += len(share.turn.choose(remaining))
                if catcher.number:
                    self._stop(catcher.number)

    def _drop_broken(self, rows: list[dict]) -> list[dict]:
        skipped = [skipped for share in self.shares for skipped in share.skipped.values()]
        if not skipped:
            return rows
        for row in rows:
            if "error" in row:
                for images in skipped:
                    images.add(row["file_name"], row["error"])
        return [row for row in rows if "error" not in row]

    def _stop(self, number: int) -> None:
        for share in self.shares:
            for evaluator in share.keepers:
                evaluator.save_progress()
        name = signal.Signals(number).name
        logger.info("Stopped by %s, and what is done is saved: --eval-only --resume goes on from it", name)
        sys.exit(128 + number)
