"""The Trainer: Detectron2's DefaultTrainer with TCL's data, optimiser, precision, stages and zero-shot evaluation."""

import time
import weakref
from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import TCLCheckpointer
from ..data import BenchmarkMapper, build_image_text_train_loader
from ..evaluation import ZeroShotSemSegEvaluator, write_report
from ..evaluation.report import average
from .hooks import BestByAverage, LearnedScalars, StageSwitch
from .optimizer import build_optimizer

EVALUATORS = {"zero_shot_sem_seg": ZeroShotSemSegEvaluator}


class TrainingStep(AMPTrainer):
    """One iteration in the configured precision, on any device. Detectron2's own AMPTrainer needs CUDA."""

    def __init__(self, model: nn.Module, data_loader, optimizer, device: torch.device, precision: torch.dtype | None):
        """
        Args:
            precision: of autocast: torch.float16 (gradients are scaled), torch.bfloat16, or None for full precision.
        """
        scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=precision)
        self.device_type = device.type

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.precision, enabled=self.precision is not None):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def _precision(cfg: CfgNode) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if cfg.SOLVER.AMP.DTYPE not in kinds:
        raise ValueError(f"SOLVER.AMP.DTYPE must be one of {', '.join(kinds)}, not '{cfg.SOLVER.AMP.DTYPE}'.")
    if cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.DTYPE float16 needs a GPU; on a CPU take bfloat16, or SOLVER.AMP.ENABLED False.")
    return kinds[cfg.SOLVER.AMP.DTYPE]


class Trainer(DefaultTrainer):
    """Trains TCL and evaluates any zero-shot segmentor; see DefaultTrainer."""

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)  # DefaultTrainer's own builds parts that are replaced here
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        precision = _precision(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        model = create_ddp_model(model, broadcast_buffers=False)
        device = torch.device(cfg.MODEL.DEVICE)
        self._trainer = TrainingStep(model, self.build_train_loader(cfg), optimizer, device, precision)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TCLCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if self.start_iter > 0:  # a resumed training goes on with other samples, not with its first ones again
            self._trainer.reset_data_loader(lambda: self.build_train_loader(self.cfg, skip=self.start_iter))

    def build_hooks(self) -> list:
        cfg = self.cfg
        ret = [StageSwitch(cfg.MODEL.TCL.UNFREEZE_ITER), *super().build_hooks()]
        writer = [ret.pop()] if comm.is_main_process() else []  # writes last, after what there is to write
        ret.append(LearnedScalars())
        if cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process():
            ret.append(BestByAverage(cfg.TEST.EVAL_PERIOD, self.checkpointer))
        return ret + writer

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"SOLVER.WARMUP_ITERS ({cfg.SOLVER.WARMUP_ITERS}) must be less than SOLVER.MAX_ITER "
                f"({cfg.SOLVER.MAX_ITER})."
            )
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, skip: int = 0):
        """
        Args:
            skip: iterations already trained; with a seed, another number draws another order.
        """
        seed = cfg.SEED + skip if cfg.SEED >= 0 else None
        return build_image_text_train_loader(cfg, seed=seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_detection_test_loader(cfg, dataset_name, mapper=BenchmarkMapper(cfg))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind not in EVALUATORS:
            raise ValueError(
                f"Data set '{dataset_name}' has the evaluator_type '{kind}'; expected one of {', '.join(EVALUATORS)}."
            )
        return EVALUATORS[kind](dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> OrderedDict:
        """Evaluates on each of DATASETS.TEST with its own vocabulary, and logs one table with the average.

        Returns:
            {data set: {"sem_seg": metrics}, "average": metrics}, in percent; {} off rank 0 or without data sets.
        """
        evaluators = evaluators or [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        results = OrderedDict()
        for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
            metadata = MetadataCatalog.get(name)
            background = metadata.get("background", False)
            bare.set_vocabulary(metadata.stuff_classes[int(background) :], background)
            results[name] = inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)
        if not results or not comm.is_main_process():
            return OrderedDict()
        write_report(results)
        results["average"] = average(results)
        return results
