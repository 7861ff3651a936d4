"""One training step in the configured precision, which leaves out batches whose numbers have gone bad."""

import logging
import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor, nn

from .processes import all_reduce_max

logger = logging.getLogger(__name__)


class NanSafeAMPTrainer(AMPTrainer):
    """One iteration, on any device; Detectron2's own AMPTrainer needs CUDA, and stops at the first NaN.

    Attributes:
        skipped_in_a_row: steps just before that did not change the model, since a loss or a gradient was NaN or Inf.
        problem: what was wrong with the last one of them.
    """

    def __init__(self, model: nn.Module, data_loader, optimizer, device: torch.device, precision: torch.dtype | None):
        """
        Args:
            precision: of autocast: torch.float16 (gradients are scaled), torch.bfloat16, or None for full precision.
        """
        scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=precision)
        self.device_type = device.type
        self.skipped_in_a_row = 0
        self.problem = ""

    def skip_batches(self, count: int) -> None:
        """Takes batches that were trained on before a checkpoint."""
        for i in range(count):
            next(self._data_loader_iter)
            log_every_n_seconds(logging.INFO, f"Data: skipped {i + 1} of {count} batches that were trained on", n=10)

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.precision, enabled=self.precision is not None):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        if self._leave_out(losses, data):
            return
        self._write_metrics(losses, data_time)
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.grad_scaler.get_scale() < scale:
            logger.info("float16 overflow: step left out, the loss scale is now %g", self.grad_scaler.get_scale())

    def _leave_out(self, losses: dict[str, Tensor], data: list[dict]) -> bool:
        """Whether the step must not change the model; says why, and with which samples."""
        wrong = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        # In float16, the scaler itself looks for gradients that overflow.
        if not wrong and not self.grad_scaler.is_enabled() and not torch.isfinite(self._gradient_norm()):
            wrong = ["the gradient"]
        if not all_reduce_max(len(wrong), next(iter(losses.values())).device):
            self.skipped_in_a_row = 0
            return False
        self.skipped_in_a_row += 1
        names = ", ".join(str(one.get("key") or one.get("file_name", "?")) for one in data)
        what = ", ".join(wrong) or "a loss of another process"
        self.problem = f"{what} is NaN or Inf; the batch: {names}"
        logger.warning("Iteration %d left out (%d in a row): %s", self.iter, self.skipped_in_a_row, self.problem)
        return True

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)


def training_precision(cfg: CfgNode) -> torch.dtype | None:
    """That of autocast, from SOLVER.AMP; None for none. ValueError for one that does not work."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if cfg.SOLVER.AMP.DTYPE not in kinds:
        raise ValueError(f"SOLVER.AMP.DTYPE must be one of {', '.join(kinds)}, not '{cfg.SOLVER.AMP.DTYPE}'.")
    if cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.DTYPE float16 needs a GPU; on a CPU take bfloat16, or SOLVER.AMP.ENABLED False.")
    return kinds[cfg.SOLVER.AMP.DTYPE]
