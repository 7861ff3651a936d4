"""One pass over the images of an evaluation, for all datasets that have them."""

import datetime
import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds, log_first_n
from torch import nn

from ..data.dataset_files import subsample
from ..evaluation import SharedImagesEvaluator, ZeroShotSemSegEvaluator, needed_outputs
from ..evaluation.progress import EvaluationProgress, fingerprint, stat_files
from ..evaluation.similarity import class_similarity
from ..evaluation.skipped import DropBrokenImages, SkippedImages
from ..evaluation.zero_shot import inference_folder
from ..modeling.objects import OUTPUTS
from ..modeling.vocabulary import dataset_vocabulary, join_vocabularies
from ..utils.tensors import digest_weights
from ..version import __version__
from .dataset_settings import words_from_config
from .processes import unwrap_ddp
from .signals import StoppableLoader

logger = logging.getLogger(__name__)
# What zero-shot segmentation reads of Detectron2's own keys in MODEL
_MODEL_KEYS = ("META_ARCHITECTURE", "WEIGHTS", "DEVICE", "PIXEL_MEAN", "PIXEL_STD")


class RemainingImages:
    """A test loader's batches of the images that are left to do, with what the model is asked for.

    Attributes:
        num_images: how many images this process has given, and are done.
    """

    def __init__(self, loader: Iterable[list[dict]], file_names: Collection[str], options: Mapping[str, object]):
        """Wrap a loader.

        Args:
            loader: gives batches of dicts with `file_name`, and has a length.
            file_names: of the images that are left; the loader's other images are left out.
            options: for the model, with each image.
        """
        self.loader = loader
        self.file_names = file_names
        self.options = options
        self.num_images = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        start = time.perf_counter()
        for batch in self.loader:
            remaining = [
                input_per_image for input_per_image in batch if input_per_image["file_name"] in self.file_names
            ]
            if remaining:
                yield [{**input_per_image, **self.options} for input_per_image in remaining]
                self.num_images += len(remaining)
                self._log_progress(time.perf_counter() - start)

    def _log_progress(self, seconds: float) -> None:
        """Say how far this process is; Detectron2's own log counts batches."""
        total = math.ceil(len(self.file_names) / comm.get_world_size())
        left = datetime.timedelta(seconds=round(seconds / self.num_images * max(0, total - self.num_images)))
        speed = self.num_images / seconds
        message = f"{self.num_images} of {total} images done, {speed:.1f} a second; {left} left"
        log_every_n_seconds(logging.INFO, message, n=5, name=__name__)


class EvaluationPass:
    """Evaluates datasets of the same images: each image is segmented once, and compared with each dataset's labels."""

    def __init__(
        self,
        trainer: type[DefaultTrainer],
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Mapping[str, DatasetEvaluator | None],
        resume: bool,
    ):
        """Prepare the pass.

        Args:
            trainer: the Trainer, which builds the loader: that of the first dataset serves all of them.
            cfg: the configuration.
            model: a zero-shot segmentor, also under DistributedDataParallel.
            evaluators: by registered dataset, None to segment alone; the datasets have the same images.
            resume: whether to go on from what a stopped evaluation has done.
        """
        self.trainer = trainer
        self.cfg = cfg
        self.model = model
        self.evaluators = {name: evaluator or DatasetEvaluators([]) for name, evaluator in evaluators.items()}
        self.dataset_dicts = {name: load_test_dicts(cfg, name) for name in evaluators}
        self.file_names = {dataset_dict["file_name"] for dataset_dict in next(iter(self.dataset_dicts.values()))}

        # What each dataset keeps of the pass
        self.progress = self._build_progress(resume)
        self.skipped: dict[str, SkippedImages] = {}
        if cfg.TEST.ZERO_SHOT.SKIP_BROKEN:
            self.skipped = {name: SkippedImages() for name in evaluators}

    def run(self) -> dict[str, dict]:
        """Return the results of each dataset: {"sem_seg": metrics, "images": count, "skipped": count}."""
        self._set_model()
        self._set_similarity()
        for name, progress in self.progress.items():
            self.evaluators[name].attach(progress, self.skipped.get(name))
        evaluator = self._join_evaluators()
        done = self._images_done()

        # Segment the images that are left
        num_images = len(done)
        if num_images < len(self.file_names):
            remaining = self._build_loader(self.file_names - done)
            results = inference_on_dataset(self.model, self._prepare_to_stop(remaining), evaluator)
            num_images += sum(comm.gather(remaining.num_images))
        else:
            results = evaluator.evaluate()
        return self._count_images(results, num_images)

    def _set_model(self) -> None:
        """Set the classes, and, where datasets have settings of their own, those of these ones."""
        model = unwrap_ddp(self.model)
        if self.cfg.TEST.ZERO_SHOT.BY_DATASET:
            model.set_protocol(**model.protocol_from_config(self.cfg))
        words = {name: words_from_config(self.cfg, name) for name in self.evaluators}
        model.set_dataset(*self.evaluators, class_words=words)

    def _set_similarity(self) -> None:
        """Give evaluators that need it the similarity of their classes, by the words that the model looks for."""
        model = unwrap_ddp(self.model)
        for name, evaluator in self.evaluators.items():
            if isinstance(evaluator, ZeroShotSemSegEvaluator) and evaluator.needs_similarity:
                words, (subset,) = join_vocabularies([dataset_vocabulary(name, words_from_config(self.cfg, name))])
                evaluator.set_similarity(class_similarity(subset, model.embed_vocabulary(words, model.templates)))

    def _build_progress(self, resume: bool) -> dict[str, EvaluationProgress]:
        """Return where the evaluators keep what is done; those that are no ZeroShotSemSegEvaluator keep nothing."""
        names = []
        for name, evaluator in self.evaluators.items():
            if isinstance(evaluator, ZeroShotSemSegEvaluator):
                names.append(name)
            else:
                other = f"The {type(evaluator).__name__} of '{name}'"
                message = f"{other} keeps no progress: --resume evaluates all images again"
                log_first_n(logging.INFO, message, name=__name__, key="message")

        # All of MODEL and TEST.ZERO_SHOT counts, also what results do not depend on: of a key that is new, nobody can
        # tell. So a new key, or another value of any, makes an evaluation that is resumed begin anew.
        settings = {**evaluation_settings(self.cfg), "MODEL": self.cfg.MODEL}
        weights = digest_weights(unwrap_ddp(self.model))

        progress = {}
        for name in names:
            facts = {
                "settings": settings,
                "data": self.dataset_dicts[name],
                "metadata": MetadataCatalog.get(name).as_dict(),
                "words": words_from_config(self.cfg, name),
                "files": stat_files(self.dataset_dicts[name]),
            }
            progress[name] = EvaluationProgress(inference_folder(self.cfg, name), fingerprint(weights, **facts), resume)
        return progress

    def _join_evaluators(self) -> DatasetEvaluator:
        if len(self.evaluators) == 1:
            return next(iter(self.evaluators.values()))
        return SharedImagesEvaluator(self.evaluators, self.dataset_dicts)

    def _images_done(self) -> set[str]:
        """Return the files of the images that a stopped evaluation has done for all datasets."""
        if len(self.progress) < len(self.evaluators):
            return set()
        done = set.intersection(*(set(progress.done) for progress in self.progress.values()))
        if done:
            logger.info("%d of %d images were done before", len(done), len(self.file_names))
        return done

    def _build_loader(self, file_names: set[str]) -> RemainingImages:
        loader = self.trainer.build_test_loader(self.cfg, next(iter(self.evaluators)))
        return RemainingImages(loader, file_names, self._request())

    def _request(self) -> dict[str, bool]:
        """Return what the model is asked for with each image: labels, where no evaluator needs scores, and objects."""
        outputs = frozenset().union(*map(needed_outputs, self.evaluators.values()))
        return {"labels_only": "sem_seg" not in outputs, **dict.fromkeys(outputs & set(OUTPUTS), True)}

    def _prepare_to_stop(self, loader: RemainingImages) -> StoppableLoader:
        if self.skipped:
            loader = DropBrokenImages(loader, list(self.skipped.values()))
        return StoppableLoader(loader, self._save_progress)

    def _save_progress(self) -> None:
        for progress in self.progress.values():
            progress.save_latest()

    def _count_images(self, results: dict | None, num_images: int) -> dict[str, dict]:
        """Return results by dataset, with the numbers of images that count and that were left out."""
        if len(self.evaluators) == 1:
            results = dict.fromkeys(self.evaluators, results)

        counted = {}
        for name in self.evaluators:
            skipped = self.skipped[name].total() if self.skipped else 0
            counted[name] = {**(results[name] or {}), "images": num_images - skipped, "skipped": skipped}
        return counted


def load_test_dicts(cfg: CfgNode, dataset_name: str) -> list[dict]:
    """Return the images of a dataset that are evaluated: all, or TEST.ZERO_SHOT.MAX_IMAGES of them."""
    return subsample(DatasetCatalog.get(dataset_name), cfg.TEST.ZERO_SHOT.MAX_IMAGES)


def group_by_images(cfg: CfgNode, evaluators: Mapping[str, DatasetEvaluator | None]) -> list[list[str]]:
    """Group datasets of the same images, settings and objects: masks are then made once for all of a group.

    Images whose annotated sizes differ are not the same: the mapper compares those of the first dataset alone.

    Args:
        cfg: the configuration.
        evaluators: by dataset.
    """
    groups = {}
    for name, evaluator in evaluators.items():
        rows = DatasetCatalog.get(name)
        images = tuple((row["file_name"], row.get("height"), row.get("width")) for row in rows)
        settings = str(cfg.TEST.ZERO_SHOT.BY_DATASET.get(name))
        objects = needed_outputs(evaluator) & set(OUTPUTS)
        groups.setdefault((images, settings, objects), []).append(name)
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
