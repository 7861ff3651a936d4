"""One training step in the configured precision, which leaves out batches whose losses or gradients are NaN or Inf."""

import logging
import time
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config.ranges import check_values
from ..runs.processes import all_reduce_max

logger = logging.getLogger(__name__)


class NanSafeAMPTrainer(AMPTrainer):
    """Runs iterations on any device; Detectron2's own AMPTrainer needs CUDA, and stops at the first NaN.

    Attributes:
        skipped_in_a_row: number of the last steps that left the model as it was, because of NaN or Inf.
        problem: the cause of the last of these steps.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: Optimizer,
        device: torch.device,
        precision: torch.dtype | None,
    ):
        """Build the trainer; a `precision` of torch.float16 scales the gradients, None is no autocast."""
        scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler)
        self.precision: torch.dtype | None = precision
        self.device_type = device.type
        self.skipped_in_a_row = 0
        self.problem = ""

    def run_step(self) -> None:
        """Train on the next batch."""
        # Data
        start = time.perf_counter()
        batched_inputs = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        # Losses and gradients
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # such as a batch norm's running statistics
        with torch.autocast(self.device_type, dtype=self.precision, enabled=self.precision is not None):
            losses = self.model(batched_inputs)
        self.optimizer.zero_grad()
        first, *others = losses.values()
        self.grad_scaler.scale(sum(others, first)).backward()
        self.after_backward()

        # Step
        bad_names = self._bad_names(losses)
        if all_reduce_max(len(bad_names), next(iter(losses.values())).device):
            self._skip(bad_names, batched_inputs)
            for buffer, previous in zip(self.model.buffers(), buffers):
                buffer.copy_(previous)
            return
        self.skipped_in_a_row = 0
        self._write_metrics(losses, data_time)
        self._step_optimizer()

    def _bad_names(self, losses: dict[str, Tensor]) -> list[str]:
        """Return the names of losses that are NaN or Inf, or "the gradient" if that is."""
        are_finite = torch.stack(list(losses.values())).isfinite().tolist()  # in one wait for a GPU
        bad_losses = [name for name, is_finite in zip(losses, are_finite) if not is_finite]
        if bad_losses:
            return bad_losses
        if self.grad_scaler.is_enabled():  # it looks itself for gradients that overflow
            return []
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return [] if torch.nn.utils.get_total_norm(gradients).isfinite() else ["the gradient"]

    def _skip(self, bad_names: list[str], batched_inputs: list[dict]) -> None:
        """Count and log a step that does not change the model."""
        self.skipped_in_a_row += 1
        samples = [str(sample.get("key") or sample.get("file_name", "?")) for sample in batched_inputs]
        cause = ", ".join(bad_names) or "a loss of another process"
        self.problem = f"{cause} is NaN or Inf; the batch: {', '.join(samples)}"
        logger.warning("Iteration %d left out (%d in a row): %s", self.iter, self.skipped_in_a_row, self.problem)

    def _step_optimizer(self) -> None:
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.grad_scaler.get_scale() < scale:
            logger.info("float16 overflow: step left out, the loss scale is now %g", self.grad_scaler.get_scale())


def training_precision(cfg: CfgNode) -> torch.dtype | None:
    """Return the dtype of autocast in training, None for none; ValueError if SOLVER.AMP.DTYPE does not fit."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None

    check_values("SOLVER.AMP", DTYPE=cfg.SOLVER.AMP.DTYPE)
    if cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.DTYPE float16 needs a GPU; on a CPU take bfloat16, or SOLVER.AMP.ENABLED False.")
    return getattr(torch, cfg.SOLVER.AMP.DTYPE)
