"""Hooks: the switch to the second stage, the learned scalars in the log, the best checkpoint, stopping and resuming."""

import logging
import signal
import sys
import zlib
from functools import partial
from types import SimpleNamespace

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..checkpoint import TCLCheckpointer
from .optimizer import trained_parameters
from .processes import all_reduce_max, unwrap_ddp, wrap_ddp
from .signals import SignalCatcher
from .step import NanSafeAMPTrainer

logger = logging.getLogger(__name__)


class UnfreezeHook(HookBase):
    """From an iteration on, the copied last blocks train too (paper: 30,000 of 50,000)."""

    def __init__(self, iteration: int):
        """
        Args:
            iteration: the first iteration of the second stage; negative: there is none.
        """
        self.iteration = iteration
        self._done = False

    def before_step(self) -> None:
        # By iteration, not by event: a training resumed in the second stage switches at its first step.
        if self._done or self.iteration < 0 or self.trainer.iter < self.iteration:
            return
        model = unwrap_ddp(self.trainer.model)
        model.train_last_blocks(True)
        # DistributedDataParallel averages the gradients of what was trainable when it was built: build it anew. (The
        # official release does not, and the blocks of its processes drift apart.)
        self.trainer.model = wrap_ddp(model)
        self._done = True


class LearnedScalars(HookBase):
    """Logs Sim2Mask's w and b, the decoder's gates and the losses' scales: every 0-d parameter."""

    def __init__(self, period: int = 20):
        self.period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            parameters = trained_parameters(unwrap_ddp(self.trainer.model))
            scalars = {f"learned/{name}": p.item() for name, p in parameters.items() if p.ndim == 0}
            self.trainer.storage.put_scalars(smoothing_hint=False, **scalars)


class BestAverageCheckpointer(hooks.BestCheckpointer):
    """Keeps the checkpoint with the best average mIoU as model_best.pth; a resumed training remembers it."""

    def __init__(self, eval_period: int, checkpointer: TCLCheckpointer):
        # It is written after training's own last checkpoint, and must not take its place for --resume.
        beside = SimpleNamespace(save=partial(checkpointer.save, tag=False))
        super().__init__(eval_period, beside, "average/mIoU")

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class SeedHook(HookBase):
    """Makes the random choices of an iteration depend on the seed, the iteration and the process alone.

    So a resumed training makes those that an uninterrupted one makes, without random states in the checkpoint.
    """

    def before_step(self) -> None:
        seed_all_rng(zlib.crc32(f"{self.trainer.seed} {self.trainer.iter} {comm.get_rank()}".encode()))


class RestartDataHook(HookBase):
    """Begins the data anew at each checkpoint, where a resumed training begins too."""

    def __init__(self, period: int):
        self.period = period

    def before_step(self) -> None:
        if self.trainer.iter % self.period == 0 and self.trainer.iter > self.trainer.start_iter:
            self.trainer.restart_data(self.trainer.iter)


def save_now(checkpointer: TCLCheckpointer, iteration: int) -> None:
    """Write the checkpoint that --resume goes on from, between those of SOLVER.CHECKPOINT_PERIOD."""
    checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    comm.synchronize()  # a process that ended would have the main one, which writes, ended too


class StopOnBadSteps(HookBase):
    """Ends a training whose losses or gradients stay NaN or Inf, with a checkpoint of the last good state."""

    def __init__(self, step: NanSafeAMPTrainer, checkpointer: TCLCheckpointer, most: int):
        """
        Args:
            most: steps in a row that may be left out.
        """
        self.step = step
        self.checkpointer = checkpointer
        self.most = most

    def after_step(self) -> None:
        if self.step.skipped_in_a_row > self.most:
            save_now(self.checkpointer, self.trainer.iter)
            raise FloatingPointError(
                f"{self.step.skipped_in_a_row} steps in a row had to be left out (SOLVER.MAX_SKIPPED is {self.most}). "
                f"The last: {self.step.problem}. The model is as before them, and saved: look at the data or lower "
                "SOLVER.BASE_LR, then go on with --resume."
            )


class StopOnSignal(HookBase):
    """SIGTERM and SIGINT end a training after the running iteration, with a checkpoint; a second one at once."""

    def __init__(self, checkpointer: TCLCheckpointer, catcher: SignalCatcher):
        """
        Args:
            catcher: of the signals, while the training runs.
        """
        self.checkpointer = checkpointer
        self.catcher = catcher
        self._message = ""

    def after_step(self) -> None:
        number = all_reduce_max(self.catcher.number, next(self.trainer.model.parameters()).device)
        if not number:
            return
        save_now(self.checkpointer, self.trainer.iter)
        name, done = signal.Signals(number).name, self.trainer.iter
        self._message = f"Stopped by {name} after iteration {done}, with a checkpoint; --resume goes on from it"
        sys.exit(128 + number)

    def after_train(self) -> None:
        if self._message:  # after what the other hooks say
            logger.info(self._message)
