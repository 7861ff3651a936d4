"""One pass over the images of an evaluation, for all datasets that have them."""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from torch import nn

from ..data.benchmarks import subsample
from ..evaluation import SharedImagesEvaluator
from ..evaluation.progress import EvaluationProgress, digest_weights, fingerprint, stat_files
from ..evaluation.skipped import SkippedImages
from ..evaluation.zero_shot import inference_folder
from ..version import __version__
from .processes import unwrap_ddp
from .signals import StoppableLoader

logger = logging.getLogger(__name__)
# What zero-shot segmentation reads of Detectron2's own keys in MODEL
_MODEL_KEYS = ("META_ARCHITECTURE", "WEIGHTS", "DEVICE", "PIXEL_MEAN", "PIXEL_STD")


class EvaluationPass:
    """Evaluates datasets of the same images: each image is segmented once, and compared with each dataset's labels."""

    def __init__(
        self, trainer: type[DefaultTrainer], cfg: CfgNode, model: nn.Module, dataset_names: Sequence[str], resume: bool
    ):
        """Prepare the pass.

        Args:
            trainer: the Trainer, which builds the evaluators and the loader.
            cfg: the configuration.
            model: a zero-shot segmentor, also under DistributedDataParallel.
            dataset_names: registered datasets of the same images.
            resume: whether to go on from what a stopped evaluation has done.
        """
        self.trainer = trainer
        self.cfg = cfg
        self.model = model
        self.dataset_dicts = {name: load_test_dicts(cfg, name) for name in dataset_names}
        self.num_images = len(self.dataset_dicts[dataset_names[0]])

        # What each dataset keeps of the pass
        self.progress = self._build_progress(resume)
        self.skipped: dict[str, SkippedImages] = {}
        if cfg.TEST.ZERO_SHOT.SKIP_BROKEN:
            self.skipped = {name: SkippedImages() for name in dataset_names}

    def run(self) -> dict[str, dict]:
        """Return the results of each dataset: {"sem_seg": metrics, "images": count, "skipped": count}."""
        unwrap_ddp(self.model).set_dataset(*self.dataset_dicts)
        evaluator = self._build_evaluator()
        done = self._images_done()

        if len(done) < self.num_images:
            results = inference_on_dataset(self.model, self._build_loader(done), evaluator)
        else:
            results = evaluator.evaluate()
        return self._count_images(results)

    def _build_progress(self, resume: bool) -> dict[str, EvaluationProgress]:
        # All of MODEL and TEST.ZERO_SHOT counts, also what results do not depend on: of a key that is new, nobody can
        # tell. So a new key, or another value of any, makes an evaluation that is resumed begin anew.
        settings = {**evaluation_settings(self.cfg), "MODEL": self.cfg.MODEL}
        weights = digest_weights(unwrap_ddp(self.model))

        progress = {}
        for name, dataset_dicts in self.dataset_dicts.items():
            facts = {
                "settings": settings,
                "data": dataset_dicts,
                "metadata": MetadataCatalog.get(name).as_dict(),
                "files": stat_files(dataset_dicts),
            }
            progress[name] = EvaluationProgress(inference_folder(self.cfg, name), fingerprint(weights, **facts), resume)
        return progress

    def _build_evaluator(self) -> DatasetEvaluator:
        evaluators = {
            name: self.trainer.build_evaluator(self.cfg, name, progress=progress, skipped=self.skipped.get(name))
            for name, progress in self.progress.items()
        }
        if len(evaluators) == 1:
            return next(iter(evaluators.values()))
        return SharedImagesEvaluator(evaluators, self.dataset_dicts)

    def _images_done(self) -> set[str]:
        """Return the IDs of the images that a stopped evaluation has done for all datasets."""
        done = set.intersection(*(set(progress.done) for progress in self.progress.values()))
        if done:
            logger.info("%d of %d images were done before", len(done), self.num_images)
        return done

    def _build_loader(self, done: set[str]) -> StoppableLoader:
        name = next(iter(self.dataset_dicts))
        loader = self.trainer.build_test_loader(self.cfg, name, done, list(self.skipped.values()))
        return StoppableLoader(loader, self._save_progress)

    def _save_progress(self) -> None:
        for progress in self.progress.values():
            progress.save_latest()

    def _count_images(self, results: dict | None) -> dict[str, dict]:
        """Return results by dataset, with the numbers of images that count and that were left out."""
        if len(self.dataset_dicts) == 1:
            results = dict.fromkeys(self.dataset_dicts, results)

        counted = {}
        for name in self.dataset_dicts:
            skipped = self.skipped[name].total() if self.skipped else 0
            counted[name] = {**(results[name] or {}), "images": self.num_images - skipped, "skipped": skipped}
        return counted


def load_test_dicts(cfg: CfgNode, dataset_name: str) -> list[dict]:
    """Return the images of a dataset that are evaluated: all, or TEST.ZERO_SHOT.MAX_IMAGES of them."""
    return subsample(DatasetCatalog.get(dataset_name), cfg.TEST.ZERO_SHOT.MAX_IMAGES)


def group_by_images(dataset_names: Sequence[str]) -> list[list[str]]:
    """Group datasets that have the same images: masks are then made once for all of a group."""
    groups = {}
    for name in dataset_names:
        images = tuple(dataset_dict["file_name"] for dataset_dict in DatasetCatalog.get(name))
        groups.setdefault(images, []).append(name)
    return list(groups.values())


def evaluation_settings(cfg: CfgNode) -> dict:
    """Return what zero-shot segmentation reads of a configuration, to be written beside the results, and versions."""
    others = get_cfg().MODEL.keys() - set(_MODEL_KEYS)
    return {
        "tcl_d2": __version__,
        "torch": torch.__version__,
        "MODEL": {key: value for key, value in cfg.MODEL.items() if key not in others},
        "INPUT": {key: cfg.INPUT[key] for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST")},
        "TEST.ZERO_SHOT": cfg.TEST.ZERO_SHOT,
    }
