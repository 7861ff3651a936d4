"""The Trainer: Detectron2's DefaultTrainer with image-text data, AdamW, precision, stages and zero-shot evaluation."""

import logging
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from ..checkpoint import TCLCheckpointer, make_card
from ..config import dataset_config
from ..data import BenchmarkMapper, build_image_text_train_loader
from ..data.loader import RestartableLoader
from ..evaluation import build_evaluator, verify_results, write_report
from ..evaluation.published import published_for
from ..evaluation.report import average, save_report
from ..modeling import ZeroShotSegmentor
from .evaluation_pass import EvaluationPass, evaluation_settings, group_by_images, load_test_dicts
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
from .processes import unwrap_ddp, wrap_ddp
from .signals import SignalCatcher
from .step import NanSafeAMPTrainer, training_precision
from .training_data import check_training_data
from .wandb_writer import WandbWriter

logger = logging.getLogger(__name__)


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
    """Trains models that give losses, such as TCL, and evaluates any zero-shot segmentor; see DefaultTrainer."""

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
        data_loader = self.build_train_loader(cfg)

        model = wrap_ddp(model)
        self._trainer = NanSafeAMPTrainer(model, data_loader, optimizer, torch.device(cfg.MODEL.DEVICE), precision)
        if not isinstance(data_loader, RestartableLoader):
            logger.info("The training data is not of build_image_text_train_loader: --resume begins it anew")
        self._data_state = {}
        self.restart_data(0)  # with the seed that was drawn

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TCLCheckpointer(model, cfg.OUTPUT_DIR, card=card, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER

        self._catcher = SignalCatcher()
        self.register_hooks(self.build_hooks())

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
        """Train, and check the last evaluation against TEST.EXPECTED_RESULTS, as Detectron2 does.

        Returns:
            the results of the last evaluation; None where there was none.
        """
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
            iteration: the next one.
            state: of the data before it, as RestartableLoader gathers it.
        """
        loader = self.data_loader
        if isinstance(loader, RestartableLoader):
            loader.restart(self.seed, iteration * self.cfg.SOLVER.IMS_PER_BATCH, state)
            self._trainer.reset_data_loader(lambda: loader)

    def keep_data_state(self) -> None:
        """Keep for the next checkpoint where the data goes on after this iteration. All processes must call this."""
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
        """Build the loader of training batches.

        A subclass may return any endless loader. Only that of build_image_text_train_loader, with any mapper, goes on
        at the right sample after --resume.
        """
        check_training_data(cfg)
        return build_image_text_train_loader(cfg)

    # ------------------------------------------------------------------------------------ evaluation

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """Build the loader of a dataset's images, or of TEST.ZERO_SHOT.MAX_IMAGES of them.

        This one serves all of DATASETS.TEST that have the same images; that of a subclass is built for each dataset.
        Its dicts have `file_name`, and what the model takes.
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
        """Build the evaluator of a dataset; by default, see evaluation.build_evaluator.

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

        Afterwards the model has the protocol and the classes that it had before.

        Args:
            cfg: the configuration.
            model: a zero-shot segmentor.
            evaluators: of each of DATASETS.TEST; None for those of build_evaluator.
            resume: whether to go on from what a stopped evaluation of the same model and settings has done.

        Returns:
            empty off rank 0 or without datasets, else:

            <dataset>: {"sem_seg": metrics in percent, "images": count, "skipped": count}.
            average: mean of each metric over the datasets.

        Raises:
            ValueError: a dataset has no evaluator, or the evaluators are not as many as the datasets.
        """
        names = cfg.DATASETS.TEST
        evaluators = cls._build_evaluators(cfg) if evaluators is None else _by_dataset(names, evaluators)

        # Datasets of the same images in one pass, but that a subclass may read them in another way for each dataset
        groups = [[name] for name in evaluators]
        if cls.build_test_loader.__func__ is Trainer.build_test_loader.__func__:
            groups = group_by_images(cfg, evaluators)

        results = OrderedDict((name, {}) for name in names)
        segmentor = unwrap_ddp(model)
        has_settings = isinstance(segmentor, ZeroShotSegmentor)  # else it knows its classes by itself
        with segmentor.keep_settings() if has_settings else nullcontext():
            for i, group in enumerate(groups, start=1):
                logger.info("Pass %d of %d over images: %s", i, len(groups), ", ".join(group))
                group_evaluators = {name: evaluators[name] for name in group}
                group_cfg = dataset_config(cfg, group[0])
                results.update(EvaluationPass(cls, group_cfg, model, group_evaluators, resume).run())

        if not results or not comm.is_main_process():
            return OrderedDict()
        return _report(cfg, results)

    @classmethod
    def _build_evaluators(cls, cfg: CfgNode) -> dict[str, DatasetEvaluator | None]:
        """Return the evaluators by dataset, without datasets of which a subclass's hook knows none, as Detectron2."""
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
    """Return the given evaluators by dataset; ValueError where they are not as many."""
    if isinstance(evaluators, DatasetEvaluator):
        evaluators = [evaluators]
    if len(evaluators) != len(dataset_names):
        raise ValueError(
            f"There are {len(evaluators)} evaluators for the {len(dataset_names)} datasets of DATASETS.TEST; expected "
            "one for each."
        )
    return dict(zip(dataset_names, evaluators))


def _report(cfg: CfgNode, results: OrderedDict) -> OrderedDict:
    """Log and write what was scored, also as Detectron2 prints it; return the results with their average."""
    # Evaluators of other types may have other results
    published = published_for(cfg)
    scored = {name: result for name, result in results.items() if "sem_seg" in result}
    if scored:
        write_report(scored, published)
        save_report(scored, Path(cfg.OUTPUT_DIR), published, evaluation_settings(cfg))

    for name, result in results.items():
        result.pop("tables", None)  # Detectron2's EvalHook takes numbers alone
        logger.info("Evaluation results for %s in csv format:", name)
        print_csv_format(result)
    if scored:
        results["average"] = average(scored)
        print_csv_format({"average": results["average"]})
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
