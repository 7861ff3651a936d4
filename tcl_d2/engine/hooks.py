"""Hooks: the second stage, learned scalars in the log, the best checkpoint, stopping and resuming."""

import logging
import signal
import sys
import zlib
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..checkpoint import TCLCheckpointer
from ..modeling.scalars import is_scalar
from ..runs.processes import all_reduce_max, unwrap_ddp, wrap_ddp
from ..runs.signals import SignalCatcher
from .optimizer import trained_parameters
from .step import NanSafeAMPTrainer

if TYPE_CHECKING:
    from .trainer import Trainer  # which imports this file

logger = logging.getLogger(__name__)


class TrainerHook(HookBase):
    """A hook of the Trainer, which has more than Detectron2's."""

    trainer: "Trainer"


class UnfreezeHook(TrainerHook):
    """Starts the second stage, in which the copied last blocks train too (paper: from 30,000 of 50,000)."""

    def __init__(self, iteration: int):
        """Set the first iteration of the second stage; a negative one for no second stage."""
        self.iteration = iteration
        self._done = False

    def before_step(self) -> None:
        # By iteration, not by event: a training resumed in the second stage switches at its first step.
        if self._done or self.iteration < 0 or self.trainer.iter < self.iteration:
            return

        model = unwrap_ddp(self.trainer.model)
        model.train_last_blocks(True)

        # DistributedDataParallel averages the gradients that were trainable when it was built: rebuild it. (The
        # official release does not, and the blocks of its processes drift apart.)
        self.trainer.model = wrap_ddp(model)
        self._done = True


class LearnedScalars(TrainerHook):
    """Logs every scalar: Sim2Mask's w and b, the decoder's gates and the losses' scales."""

    PERIOD = 20  # iterations, as of Detectron2's writers

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.PERIOD == 0:
            parameters = trained_parameters(unwrap_ddp(self.trainer.model))
            scalars = {f"learned/{name}": p.item() for name, p in parameters.items() if is_scalar(p)}
            self.trainer.storage.put_scalars(smoothing_hint=False, **scalars)


class BestAverageCheckpointer(hooks.BestCheckpointer):
    """Keeps the checkpoint with the best average mIoU as model_best.pth; a resumed training remembers it."""

    def __init__(self, eval_period: int, checkpointer: TCLCheckpointer):
        # The best checkpoint may be written after the last one, and must not take its place for --resume
        untagged = SimpleNamespace(save=partial(checkpointer.save, tag=False))
        super().__init__(eval_period, cast(TCLCheckpointer, untagged), "average/mIoU")

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric = state["best_metric"]
        self.best_iter = state["best_iter"]


class SeedHook(TrainerHook):
    """Seeds the random choices of an iteration by the seed, the iteration and the process.

    A resumed training then makes the same choices as an uninterrupted one, without random states in the checkpoint.
    """

    def before_step(self) -> None:
        seed_all_rng(zlib.crc32(f"{self.trainer.seed} {self.trainer.iter} {comm.get_rank()}".encode()))


class KeepDataState(TrainerHook):
    """Keeps where the data goes on after each regular checkpoint."""

    def __init__(self, period: int):
        self.period = period

    def after_step(self) -> None:
        num_done = self.trainer.iter + 1
        if num_done % self.period == 0 or num_done == self.trainer.max_iter:
            self.trainer.keep_data_state()


def save_now(trainer: "Trainer") -> None:
    """Write a checkpoint for --resume between those of SOLVER.CHECKPOINT_PERIOD; all processes must call it."""
    trainer.keep_data_state()
    trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
    comm.synchronize()  # if another process ended now, the launcher would end the main one while it writes


class StopOnBadSteps(TrainerHook):
    """Ends a training whose losses or gradients stay NaN or Inf, with a checkpoint of the last good state."""

    def __init__(self, step: NanSafeAMPTrainer, max_skipped: int):
        self.step = step
        self.max_skipped = max_skipped

    def after_step(self) -> None:
        if self.step.skipped_in_a_row > self.max_skipped:
            save_now(self.trainer)
            raise FloatingPointError(
                f"{self.step.skipped_in_a_row} steps in a row had to be left out (SOLVER.MAX_SKIPPED is "
                f"{self.max_skipped}). The last: {self.step.problem}. The model is as before them, and saved: look at "
                "the data or lower SOLVER.BASE_LR, then go on with --resume."
            )


class StopOnSignal(TrainerHook):
    """Ends a training on STOP_SIGNALS: after the running iteration, with a checkpoint; on a second one at once."""

    def __init__(self, catcher: SignalCatcher):
        self.catcher = catcher

    def after_step(self) -> None:
        number = all_reduce_max(self.catcher.number, next(self.trainer.model.parameters()).device)
        if not number:
            return

        save_now(self.trainer)
        name = signal.Signals(number).name
        message = "Stopped by %s after iteration %d, with a checkpoint; --resume goes on from it"
        logger.info(message, name, self.trainer.iter)
        sys.exit(128 + number)
