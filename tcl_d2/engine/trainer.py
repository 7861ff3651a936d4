"""The Trainer: Detectron2's DefaultTrainer with TCL's data, optimizer, precision, stages and zero-shot evaluation."""

import logging
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..checkpoint import TCLCheckpointer, make_card
from ..data import BenchmarkMapper, build_image_text_train_loader
from ..evaluation import ZeroShotSemSegEvaluator, write_report
from ..evaluation.progress import EvaluationProgress
from ..evaluation.published import published_for
from ..evaluation.report import average, save_report
from ..evaluation.skipped import DropBrokenImages, SkippedImages
from .evaluation_pass import EvaluationPass, evaluation_settings, group_by_images, load_test_dicts
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
from .processes import wrap_ddp
from .signals import SignalCatcher
from .step import NanSafeAMPTrainer, training_precision

logger = logging.getLogger(__name__)
EVALUATORS = {"zero_shot_sem_seg": ZeroShotSemSegEvaluator}


def check_schedule(cfg: CfgNode) -> None:
    """Check that the numbers of iterations make a training; ValueError names the first key that does not."""
    solver = cfg.SOLVER
    limits = [
        ("SOLVER.MAX_ITER", solver.MAX_ITER, 1),
        ("SOLVER.WARMUP_ITERS", solver.WARMUP_ITERS, 0),
        ("SOLVER.CHECKPOINT_PERIOD", solver.CHECKPOINT_PERIOD, 0),
        ("SOLVER.MAX_SKIPPED", solver.MAX_SKIPPED, 0),
        ("TEST.EVAL_PERIOD", cfg.TEST.EVAL_PERIOD, 0),
        ("VIS_PERIOD", cfg.VIS_PERIOD, 0),
    ]
    for key, value, smallest in limits:
        if value < smallest:
            raise ValueError(f"{key} is {value}; expected {smallest} or more")

    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        raise ValueError(
            f"SOLVER.WARMUP_ITERS ({solver.WARMUP_ITERS}) must be less than SOLVER.MAX_ITER ({solver.MAX_ITER})."
        )


class Trainer(DefaultTrainer):
    """Trains TCL and evaluates any zero-shot segmentor; see DefaultTrainer."""

    def __init__(self, cfg: CfgNode):
        """Build all parts of a training.

        Args:
            cfg: the configuration.

        Raises:
            ValueError: a value does not fit; names the config key.
        """
        TrainerBase.__init__(self)  # DefaultTrainer's own builds parts that are replaced here
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        check_schedule(cfg)
        precision = training_precision(cfg)
        card = make_card(cfg)  # before the changes for Detectron2's hooks
        cfg = _with_hook_settings(cfg)
        self.cfg = cfg

        # Assume these objects must be constructed in this order
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self.seed = comm.shared_random_seed() if cfg.SEED < 0 else cfg.SEED
        data_loader = self.build_train_loader(cfg, self.seed)

        model = wrap_ddp(model)
        self._trainer = NanSafeAMPTrainer(model, data_loader, optimizer, torch.device(cfg.MODEL.DEVICE), precision)

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TCLCheckpointer(model, cfg.OUTPUT_DIR, card=card, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER

        self._catcher = SignalCatcher()
        self.register_hooks(self.build_hooks())

    # ------------------------------------------------------------------------------------ training

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
        """Train; returns the results of the last evaluation."""
        with self._catcher:
            return super().train()

    def after_train(self) -> None:
        error = sys.exc_info()[1]  # that ends the training, and calls this on its way out
        try:
            super().after_train()
        except OSError:
            # Else that error is what matters: a disk that is full has no room for the last metrics either
            if error is None:
                raise

    def restart_data(self, iteration: int) -> None:
        """Go on with the samples that a training draws from this iteration on."""
        self._trainer.reset_data_loader(lambda: self.build_train_loader(self.cfg, self.seed, iteration))

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        is_main = comm.is_main_process()
        detectron2_hooks = super().build_hooks()
        writer = [detectron2_hooks.pop()] if is_main else []  # it writes after the hooks that have something to write

        # In the order in which they run
        hooks = [
            SeedHook(),
            RestartDataHook(cfg.SOLVER.CHECKPOINT_PERIOD),
            UnfreezeHook(cfg.MODEL.TCL.UNFREEZE_ITER),
            *detectron2_hooks,
            LearnedScalars(),
        ]
        if is_main and cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0:
            hooks.append(BestAverageCheckpointer(cfg.TEST.EVAL_PERIOD, self.checkpointer))
        hooks += writer
        hooks.append(StopOnBadSteps(self._trainer, self.checkpointer, cfg.SOLVER.MAX_SKIPPED))
        hooks.append(StopOnSignal(self.checkpointer, self._catcher))
        return hooks

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, seed: int, iteration: int = 0):
        """Build the loader of training batches.

        Args:
            cfg: the configuration.
            seed: of the order of the samples and their augmentation.
            iteration: the first one that the loader gives batches for.
        """
        return build_image_text_train_loader(cfg, seed=seed, start=iteration * cfg.SOLVER.IMS_PER_BATCH)

    # ------------------------------------------------------------------------------------ evaluation

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, done: Iterable[str] = (), skipped: Sequence[SkippedImages] = ()
    ):
        """Build the loader of a dataset's images.

        Args:
            cfg: the configuration.
            dataset_name: a registered dataset.
            done: IDs of images to leave out.
            skipped: with TEST.ZERO_SHOT.SKIP_BROKEN, the counters of the datasets that have these images.
        """
        done = set(done)
        dataset_dicts = [
            dataset_dict for dataset_dict in load_test_dicts(cfg, dataset_name) if dataset_dict["image_id"] not in done
        ]
        num_workers = cfg.DATALOADER.NUM_WORKERS
        loader = build_detection_test_loader(dataset_dicts, mapper=BenchmarkMapper(cfg), num_workers=num_workers)
        return DropBrokenImages(loader, skipped) if skipped else loader

    @classmethod
    def build_evaluator(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        *,
        progress: EvaluationProgress | None = None,
        skipped: SkippedImages | None = None,
    ) -> DatasetEvaluator:
        """Build the evaluator of a dataset, by the `evaluator_type` in its metadata.

        Args:
            cfg: the configuration.
            dataset_name: a registered dataset.
            progress: keeps what is done; see ZeroShotSemSegEvaluator.
            skipped: counts images that are left out; see ZeroShotSemSegEvaluator.
        """
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if evaluator_type not in EVALUATORS:
            raise ValueError(
                f"Dataset '{dataset_name}' has the evaluator_type '{evaluator_type}'; expected one of "
                f"{', '.join(EVALUATORS)}."
            )
        return EVALUATORS[evaluator_type](cfg, dataset_name, progress=progress, skipped=skipped)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, *, resume: bool = False) -> OrderedDict:
        """Evaluate on each of DATASETS.TEST with its own vocabulary; log one table, write results.json and .csv.

        Args:
            cfg: the configuration.
            model: a zero-shot segmentor.
            resume: whether to go on from what a stopped evaluation of the same model and settings has done.

        Returns:
            empty off rank 0 or without datasets, else:

            <dataset>: {"sem_seg": metrics in percent, "images": count, "skipped": count}.
            average: mean of each metric over the datasets.
        """
        # Datasets of the same images in one pass
        results = OrderedDict.fromkeys(cfg.DATASETS.TEST)
        groups = group_by_images(cfg.DATASETS.TEST)
        for i, names in enumerate(groups, start=1):
            logger.info("Pass %d of %d over images: %s", i, len(groups), ", ".join(names))
            results.update(EvaluationPass(cls, cfg, model, names, resume).run())
        if not results or not comm.is_main_process():
            return OrderedDict()

        # Report
        published = published_for(cfg)
        write_report(results, published)
        save_report(results, Path(cfg.OUTPUT_DIR), published, evaluation_settings(cfg))
        results["average"] = average(results)
        return results


def _with_hook_settings(cfg: CfgNode) -> CfgNode:
    """Return a copy of the configuration with values as Detectron2's hooks take them."""
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.DATASETS.VAL:  # EvalHook and the best checkpoint go by DATASETS.TEST
        cfg.DATASETS.TEST = cfg.DATASETS.VAL
    if cfg.SOLVER.CHECKPOINT_PERIOD == 0:  # only at the end; Detectron2 would divide by it
        cfg.SOLVER.CHECKPOINT_PERIOD = sys.maxsize
    cfg.freeze()
    return cfg
