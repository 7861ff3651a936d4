"""The Trainer: Detectron2's DefaultTrainer with TCL's data, optimiser, precision, stages and zero-shot evaluation."""

import logging
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from ..checkpoint import TCLCheckpointer, make_card
from ..data import BenchmarkMapper, build_image_text_train_loader
from ..data.benchmarks import subsample
from ..evaluation import SharedImagesEvaluator, ZeroShotSemSegEvaluator, write_report
from ..evaluation.progress import EvaluationProgress, digest_weights, fingerprint, stat_files
from ..evaluation.report import average, save_report
from ..evaluation.skipped import DropBrokenImages, SkippedImages
from ..version import __version__
from .hooks import (
    BestAverageCheckpointer,
    LearnedScalars,
    RestartDataHook,
    SeedHook,
    StopOnBadSteps,
    StopOnSignal,
    UnfreezeHook,
)
from .optimizer import build_optimizer
from .processes import unwrap_ddp, wrap_ddp
from .signals import SignalCatcher, StoppableLoader
from .step import NanSafeAMPTrainer, training_precision

logger = logging.getLogger(__name__)
EVALUATORS = {"zero_shot_sem_seg": ZeroShotSemSegEvaluator}


def check_schedule(cfg: CfgNode) -> None:
    """Look whether the numbers of iterations make a training; ValueError names the first key that does not."""
    solver = cfg.SOLVER
    least = {
        "SOLVER.MAX_ITER": (solver.MAX_ITER, 1),
        "SOLVER.WARMUP_ITERS": (solver.WARMUP_ITERS, 0),
        "SOLVER.CHECKPOINT_PERIOD": (solver.CHECKPOINT_PERIOD, 0),
        "SOLVER.MAX_SKIPPED": (solver.MAX_SKIPPED, 0),
        "TEST.EVAL_PERIOD": (cfg.TEST.EVAL_PERIOD, 0),
        "VIS_PERIOD": (cfg.VIS_PERIOD, 0),
    }
    for key, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"{key} is {value}; expected {smallest} or more")
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        raise ValueError(
            f"SOLVER.WARMUP_ITERS ({solver.WARMUP_ITERS}) must be less than SOLVER.MAX_ITER ({solver.MAX_ITER})."
        )


class Trainer(DefaultTrainer):
    """Trains TCL and evaluates any zero-shot segmentor; see DefaultTrainer."""

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)  # DefaultTrainer's own builds parts that are replaced here
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()).clone()
        check_schedule(cfg)
        card = make_card(cfg)
        cfg.defrost()
        if cfg.DATASETS.VAL:  # EvalHook and the best checkpoint go by DATASETS.TEST
            cfg.DATASETS.TEST = cfg.DATASETS.VAL
        if cfg.SOLVER.CHECKPOINT_PERIOD == 0:  # only at the end; Detectron2 would divide by it
            cfg.SOLVER.CHECKPOINT_PERIOD = sys.maxsize
        cfg.freeze()
        precision = training_precision(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        model = wrap_ddp(model)
        self.cfg = cfg
        self.seed = comm.shared_random_seed() if cfg.SEED < 0 else cfg.SEED
        loader = self.build_train_loader(cfg, self.seed)
        self._trainer = NanSafeAMPTrainer(model, loader, optimizer, torch.device(cfg.MODEL.DEVICE), precision)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TCLCheckpointer(model, cfg.OUTPUT_DIR, card=card, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._catcher = SignalCatcher()
        self.register_hooks(self.build_hooks())

    def state_dict(self) -> dict:
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if self.cfg.SEED < 0:
            self.seed = state_dict["seed"]

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if self.start_iter > 0:
            # Data begins anew at each checkpoint, so that a resumed training draws the samples that an uninterrupted
            # one does; a checkpoint written in between, on a signal, is some batches further.
            ahead = self.start_iter % self.cfg.SOLVER.CHECKPOINT_PERIOD
            self.restart_data(self.start_iter - ahead)
            self._trainer.skip_batches(ahead)

    def train(self) -> OrderedDict | None:
        with self._catcher:
            return super().train()

    def after_train(self) -> None:
        reason = sys.exc_info()[1]  # of the training's end, which calls this on its way out
        try:
            super().after_train()
        except OSError:
            if reason is None:  # else it is what matters: a disk that is full has no room for the last metrics either
                raise

    def restart_data(self, iteration: int) -> None:
        """Goes on with the samples that a training draws from this iteration on."""
        self._trainer.reset_data_loader(lambda: self.build_train_loader(self.cfg, self.seed, iteration))

    def build_hooks(self) -> list:
        cfg = self.cfg
        steady = [SeedHook(), RestartDataHook(cfg.SOLVER.CHECKPOINT_PERIOD)]
        ret = [*steady, UnfreezeHook(cfg.MODEL.TCL.UNFREEZE_ITER), *super().build_hooks()]
        writer = [ret.pop()] if comm.is_main_process() else []  # writes last, after what there is to write
        ret.append(LearnedScalars())
        if cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process():
            ret.append(BestAverageCheckpointer(cfg.TEST.EVAL_PERIOD, self.checkpointer))
        bad = StopOnBadSteps(self._trainer, self.checkpointer, cfg.SOLVER.MAX_SKIPPED)
        return [*ret, *writer, bad, StopOnSignal(self.checkpointer, self._catcher)]

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, seed: int, iteration: int = 0):
        """
        Args:
            iteration: the first one that the loader gives batches for.
        """
        return build_image_text_train_loader(cfg, seed=seed, start=iteration * cfg.SOLVER.IMS_PER_BATCH)

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, done: Iterable[str] = (), skipped: Sequence[SkippedImages] = ()
    ):
        """
        Args:
            done: IDs of images to leave out.
            skipped: where each data set of these images counts broken ones, with TEST.ZERO_SHOT.SKIP_BROKEN.
        """
        done = set(done)
        rows = [one for one in _test_rows(cfg, dataset_name) if one["image_id"] not in done]
        workers = cfg.DATALOADER.NUM_WORKERS
        loader = build_detection_test_loader(rows, mapper=BenchmarkMapper(cfg), num_workers=workers)
        return DropBrokenImages(loader, skipped) if skipped else loader

    @classmethod
    def build_evaluator(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        progress: EvaluationProgress | None = None,
        skipped: SkippedImages | None = None,
    ) -> DatasetEvaluator:
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind not in EVALUATORS:
            raise ValueError(
                f"Data set '{dataset_name}' has the evaluator_type '{kind}'; expected one of {', '.join(EVALUATORS)}."
            )
        predictions = _folder(cfg, dataset_name) / "predictions" if cfg.TEST.ZERO_SHOT.SAVE_PREDICTIONS else None
        return EVALUATORS[kind](dataset_name, progress=progress, predictions=predictions, skipped=skipped)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, *, resume: bool = False) -> OrderedDict:
        """Evaluates on each of DATASETS.TEST with its own vocabulary; logs one table and writes results.json and .csv.

        Args:
            resume: whether to go on from what a stopped evaluation of the same model and settings has done.

        Returns:
            {data set: {"sem_seg": metrics in percent, "images": count, "skipped": count}, "average": metrics}; {} off
            rank 0 or without data sets.
        """
        results = OrderedDict.fromkeys(cfg.DATASETS.TEST)
        groups = _share_images(cfg)
        for i, names in enumerate(groups, start=1):
            logger.info("Pass %d of %d over images: %s", i, len(groups), ", ".join(names))
            results.update(cls._test_group(cfg, model, names, resume))
        if not results or not comm.is_main_process():
            return OrderedDict()
        method = cfg.MODEL.META_ARCHITECTURE
        write_report(results, method)
        save_report(results, Path(cfg.OUTPUT_DIR), method, _settings(cfg))
        results["average"] = average(results)
        return results

    @classmethod
    def _test_group(cls, cfg: CfgNode, model: nn.Module, names: list[str], resume: bool) -> dict[str, dict]:
        """Evaluates data sets of the same images in one pass."""
        segmentor = unwrap_ddp(model)
        segmentor.set_dataset(*names)
        rows = {name: _test_rows(cfg, name) for name in names}
        weights, settings = digest_weights(segmentor), _settings(cfg)
        progress = {}
        for name in names:
            facts = {"settings": settings, "data": rows[name], "metadata": MetadataCatalog.get(name).as_dict()}
            facts["files"] = stat_files(rows[name])
            progress[name] = EvaluationProgress(_folder(cfg, name), fingerprint(weights, **facts), resume)
        done = set.intersection(*(set(one.done) for one in progress.values()))
        if done:
            logger.info("%d of %d images were done before", len(done), len(rows[names[0]]))
        skipped = {name: SkippedImages() for name in names} if cfg.TEST.ZERO_SHOT.SKIP_BROKEN else {}
        evaluators = {name: cls.build_evaluator(cfg, name, progress[name], skipped.get(name)) for name in names}
        shared = SharedImagesEvaluator(evaluators, rows) if len(names) > 1 else evaluators[names[0]]
        if len(done) < len(rows[names[0]]):
            loader = cls.build_test_loader(cfg, names[0], done, list(skipped.values()))

            def save() -> None:
                for saved in progress.values():
                    saved.save_latest()

            found = inference_on_dataset(model, StoppableLoader(loader, save), shared)
        else:
            found = shared.evaluate()
        found = found if len(names) > 1 else {names[0]: found}
        left_out = {name: skipped[name].total() if skipped else 0 for name in names}
        return {
            name: {**(found[name] or {}), "images": len(rows[name]) - left_out[name], "skipped": left_out[name]}
            for name in names
        }


def _test_rows(cfg: CfgNode, dataset_name: str) -> list[dict]:
    return subsample(DatasetCatalog.get(dataset_name), cfg.TEST.ZERO_SHOT.MAX_IMAGES)


def _share_images(cfg: CfgNode) -> list[list[str]]:
    """The data sets of DATASETS.TEST, those of the same images together: masks are then made once for all."""
    groups = {}
    for name in cfg.DATASETS.TEST:
        groups.setdefault(tuple(one["file_name"] for one in DatasetCatalog.get(name)), []).append(name)
    return list(groups.values())


def _folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Where the files of a benchmark's evaluation go."""
    return Path(cfg.OUTPUT_DIR, "inference", dataset_name.strip("/.").replace("/", "_"))


def _settings(cfg: CfgNode) -> dict:
    """What results depend on, to be written beside them."""
    sizes = {"MIN_SIZE_TEST": cfg.INPUT.MIN_SIZE_TEST, "MAX_SIZE_TEST": cfg.INPUT.MAX_SIZE_TEST}
    settings = {"MODEL": cfg.MODEL, "INPUT": sizes, "TEST.ZERO_SHOT": cfg.TEST.ZERO_SHOT}
    return {"tcl_d2": __version__, "torch": torch.__version__, **settings}
