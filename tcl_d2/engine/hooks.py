"""Hooks: the switch to the second stage, the learned scalars in the log, the best checkpoint by average mIoU."""

from detectron2.engine import HookBase, create_ddp_model, hooks
from torch.nn.parallel import DistributedDataParallel

from .optimizer import trained_parameters


class StageSwitch(HookBase):
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
        parallel = isinstance(self.trainer.model, DistributedDataParallel)
        model = self.trainer.model.module if parallel else self.trainer.model
        model.train_last_blocks(True)
        if parallel:
            # It averages the gradients of what was trainable when it was built: build it anew. (The official release
            # does not, and the blocks of its processes drift apart.)
            self.trainer.model = create_ddp_model(model, broadcast_buffers=False)
        self._done = True


class LearnedScalars(HookBase):
    """Logs Sim2Mask's w and b, the decoder's gates and the losses' scales: every 0-d parameter."""

    def __init__(self, period: int = 20):
        self.period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            parameters = trained_parameters(self.trainer.model)
            scalars = {f"learned/{name}": p.item() for name, p in parameters.items() if p.ndim == 0}
            self.trainer.storage.put_scalars(smoothing_hint=False, **scalars)


class BestByAverage(hooks.BestCheckpointer):
    """Keeps the checkpoint with the best average mIoU as model_best.pth; a resumed training remembers it."""

    def __init__(self, eval_period: int, checkpointer):
        super().__init__(eval_period, checkpointer, "average/mIoU")

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
