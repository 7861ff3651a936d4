"""The Trainer: Detectron2's DefaultTrainer with image-text data, AdamW, precision, stages and zero-shot evaluation."""

import logging
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import TCLCheckpointer
from ..checkpoint.card import make_card
from ..config.ranges import check_ranges
from ..data import BenchmarkMapper, build_image_text_train_loader
from ..data.feature_loader import build_feature_loader
from ..data.loader import RestartableLoader
from ..data.unlabeled import UnlabeledImageMapper
from ..evaluation import build_evaluator
from ..evaluation.evaluation_pass import Evaluation, evaluate_datasets, evaluation_settings, load_test_dicts
from ..evaluation.report import report_results, verify_results
from ..modeling import Talk2DINO
from ..runs.processes import unwrap_ddp, wrap_ddp
from ..runs.signals import SignalCatcher
from ..utils.errors import expect
from .hooks import (
    BestAverageCheckpointer,
    KeepDataState,
    LearnedScalars,
    SeedHook,
    StopOnBadSteps,
    StopOnSignal,
    UnfreezeHook,
)
from .optimizer import build_optimizer
from .step import NanSafeAMPTrainer, training_precision
from .training_data import check_training_data, takes_captions
from .wandb_writer import WandbWriter

logger = logging.getLogger(__name__)


def check_schedule(cfg: CfgNode) -> None:
    """Raise a ValueError, which names the key, if the numbers do not make a training."""
    check_ranges(cfg)
    warmup, total = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    expect(warmup < total, "SOLVER.WARMUP_ITERS", warmup, f"less than SOLVER.MAX_ITER ({total})")


class Trainer(DefaultTrainer):
    """Trains models that give losses, such as TCL, and evaluates any zero-shot segmentor; see DefaultTrainer."""

    # Those of self._trainer: DefaultTrainer hands them on
    model: nn.Module
    data_loader: Iterable[list[dict]]

    def __init__(self, cfg: CfgNode):
        """Build all parts of a training; a ValueError names the config key that does not fit."""
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
        self.seed: int = comm.shared_random_seed() if cfg.SEED < 0 else cfg.SEED
        data_loader = self.build_train_loader(cfg)

        model = wrap_ddp(model)
        self._trainer = NanSafeAMPTrainer(model, data_loader, optimizer, torch.device(cfg.MODEL.DEVICE), precision)
        if not isinstance(data_loader, RestartableLoader):
            logger.info("The training data do not come from build_image_text_train_loader: --resume restarts them")
        self._data_state = {}
        self.restart_data(0)  # with the seed that was drawn

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TCLCheckpointer(model, cfg.OUTPUT_DIR, card=card, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER

        self._catcher = SignalCatcher()
        self.register_hooks([*self.build_hooks()])

    # ------------------------------------------------------------------------------------ training

    def state_dict(self) -> dict:
        return {**super().state_dict(), "seed": self.seed, "data": self._data_state}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if self.cfg.SEED < 0:
            self.seed = state_dict["seed"]
        self._data_state = state_dict.get("data", {})

    def resume_or_load(self, resume: bool = True) -> None:
        if not resume and self.checkpointer.has_checkpoint():
            logger.warning(
                "OUTPUT_DIR '%s' has checkpoints of another training, which this one will replace: stop it to keep "
                "them, and give another OUTPUT_DIR, or --resume to go on",
                self.cfg.OUTPUT_DIR,
            )
        super().resume_or_load(resume)
        if self.start_iter > 0:
            is_current = self._data_state.get("iteration") == self.start_iter
            self.restart_data(self.start_iter, self._data_state if is_current else None)

    def train(self) -> OrderedDict | None:
        """Train, check the last evaluation against TEST.EXPECTED_RESULTS as Detectron2 does, and return it."""
        with self._catcher:
            TrainerBase.train(self, self.start_iter, self.max_iter)

        results = getattr(self, "_last_eval_results", None)
        if comm.is_main_process():
            verify_results(self.cfg, results or {})
        return results

    def after_train(self) -> None:
        error = sys.exc_info()[1]  # that ends the training, and calls this on its way out
        try:
            super().after_train()
        except OSError:
            # Else that error is what matters: a disk that is full has no room for the last metrics either
            if error is None:
                raise

    def restart_data(self, iteration: int, state: dict | None = None) -> None:
        """Draw the samples of a training from this iteration on; other loaders than ours just go on.

        Args:
            state: of the data before it, as RestartableLoader gathers it.
        """
        loader = self.data_loader
        if isinstance(loader, RestartableLoader):
            loader.restart(self.seed, iteration * self.cfg.SOLVER.IMS_PER_BATCH, state)
            self._trainer.reset_data_loader(lambda: loader)

    def keep_data_state(self) -> None:
        """Keep for the next checkpoint where the data goes on after this iteration; all processes must call it."""
        if isinstance(self.data_loader, RestartableLoader):
            self._data_state = {"iteration": self.iter + 1, **self.data_loader.gather_state()}

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        is_main = comm.is_main_process()
        detectron2_hooks = super().build_hooks()
        writer = [detectron2_hooks.pop()] if is_main else []  # it writes after the hooks that have something to write

        # In the order in which they run
        hooks = [SeedHook(), KeepDataState(cfg.SOLVER.CHECKPOINT_PERIOD)]
        if hasattr(unwrap_ddp(self._trainer.model), "train_last_blocks"):  # a model with a second stage
            hooks.append(UnfreezeHook(cfg.MODEL.TCL.UNFREEZE_ITER))
        hooks += [*detectron2_hooks, LearnedScalars()]
        if is_main and cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0:
            hooks.append(BestAverageCheckpointer(cfg.TEST.EVAL_PERIOD, self.checkpointer))
        hooks += writer
        hooks.append(StopOnBadSteps(self._trainer, cfg.SOLVER.MAX_SKIPPED))
        hooks.append(StopOnSignal(self._catcher))
        return hooks

    def build_writers(self) -> list[EventWriter]:
        writers = super().build_writers()
        if self.cfg.WANDB.PROJECT:
            writer = WandbWriter(self.cfg)
            self.register_hooks([writer])
            writers.insert(0, writer)  # TensorBoard's, the last one, clears the pictures
        return writers

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """Build the loader of training batches; a dense CLIP learns from images alone, Talk2DINO from features.

        A subclass may return any endless loader. Only that of build_image_text_train_loader, with any mapper, goes on
        at the right sample after --resume.
        """
        check_training_data(cfg)
        if issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), Talk2DINO):
            return build_feature_loader(cfg)
        mapper = None if takes_captions(cfg) else UnlabeledImageMapper(cfg)
        return build_image_text_train_loader(cfg, mapper=mapper)

    # ------------------------------------------------------------------------------------ evaluation

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Build the loader of a dataset's images, or of TEST.ZERO_SHOT.MAX_IMAGES of them.

        This one serves all of DATASETS.TEST that have the same images; a subclass's is built for each dataset. Its
        dicts have `file_name` and the model's inputs.
        """
        return build_detection_test_loader(
            load_test_dicts(cfg, dataset_name),
            mapper=BenchmarkMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            batch_size=cfg.TEST.ZERO_SHOT.IMS_PER_BATCH,
        )

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None
    ) -> DatasetEvaluator | None:
        """Build the evaluator of a dataset.

        A subclass may return any evaluator. Only a ZeroShotSemSegEvaluator goes on after --resume, and leaves out
        broken labels with TEST.ZERO_SHOT.SKIP_BROKEN.
        """
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
        *,
        resume: bool = False,
    ) -> OrderedDict:
        """Evaluate on each of DATASETS.TEST with its own vocabulary; log one table, write results.json and .csv.

        Args:
            evaluators: one for each of DATASETS.TEST; None for those of build_evaluator.
            resume: whether to go on from what a stopped evaluation of the same model and settings has done.

        Returns:
            {dataset: {"sem_seg": metrics in percent, "images": count, "skipped": count}, "average": means of the
            metrics}; empty off rank 0 or without datasets.

        Raises:
            ValueError: a dataset has no evaluator, or the numbers of evaluators and datasets differ.
        """
        names = cfg.DATASETS.TEST
        by_dataset = cls._build_evaluators(cfg) if evaluators is None else _by_dataset(names, evaluators)
        return cls._test_all([Evaluation(cfg, unwrap_ddp(model), by_dataset)], resume)[0]

    @classmethod
    def test_together(cls, cfgs: Sequence[CfgNode], models: Sequence[nn.Module], resume: bool) -> list[OrderedDict]:
        """Evaluate models whose configurations `group_configs` puts together as `test`, in one pass over the images."""
        evaluations = [Evaluation(cfg, model, cls._build_evaluators(cfg)) for cfg, model in zip(cfgs, models)]
        return cls._test_all(evaluations, resume)

    @classmethod
    def _test_all(cls, evaluations: Sequence[Evaluation], resume: bool) -> list[OrderedDict]:
        # A subclass's loader may read the same images in another way for each dataset
        share_images = cls.build_test_loader.__func__ is Trainer.build_test_loader.__func__
        all_results = evaluate_datasets(evaluations, cls.build_test_loader, share_images, resume)
        reports = []
        for evaluation, measured in zip(evaluations, all_results):
            results = OrderedDict((name, {}) for name in evaluation.cfg.DATASETS.TEST) | measured
            if results and comm.is_main_process():
                logger.info("Results for %s", evaluation.cfg.OUTPUT_DIR)
                reports.append(report_results(evaluation.cfg, results, evaluation_settings(evaluation.cfg)))
            else:
                reports.append(OrderedDict())
        return reports

    @classmethod
    def _build_evaluators(cls, cfg: CfgNode) -> dict[str, DatasetEvaluator | None]:
        """Return the evaluators by dataset, without datasets that build_evaluator does not implement."""
        evaluators = {}
        for name in cfg.DATASETS.TEST:
            try:
                evaluators[name] = cls.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("'%s' is not evaluated, for build_evaluator has no evaluator of it: %s", name, error)
        return evaluators


def _by_dataset(
    dataset_names: Sequence[str], evaluators: DatasetEvaluator | Sequence[DatasetEvaluator | None]
) -> dict[str, DatasetEvaluator | None]:
    """Return the given evaluators by dataset; ValueError if their numbers differ."""
    if isinstance(evaluators, DatasetEvaluator):
        evaluators = [evaluators]
    expected = f"{len(dataset_names)}, one for each of DATASETS.TEST"
    expect(len(evaluators) == len(dataset_names), "the number of evaluators", len(evaluators), expected)
    return dict(zip(dataset_names, evaluators))


def _with_hook_settings(cfg: CfgNode) -> CfgNode:
    """Return a copy of the configuration with the values that Detectron2's hooks expect."""
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.DATASETS.VAL:  # EvalHook and the best checkpoint go by DATASETS.TEST
        cfg.DATASETS.TEST = cfg.DATASETS.VAL
    if cfg.SOLVER.CHECKPOINT_PERIOD == 0:  # only at the end; Detectron2 would divide by it
        cfg.SOLVER.CHECKPOINT_PERIOD = sys.maxsize
    cfg.freeze()
    return cfg
