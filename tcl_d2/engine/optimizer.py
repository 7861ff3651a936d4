"""AdamW with the paper's decay groups and clipping of the total gradient norm."""

from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from ..config.ranges import check_ranges
from ..modeling import TCL, DenseCLIP, FrozenDualEncoder
from ..modeling.scalars import is_scalar
from ..utils.errors import expect


class FullModelClippedAdamW(torch.optim.AdamW):
    """AdamW that first clips the total norm of all gradients to `max_norm`; 0 for no clipping.

    Clipping inside `step` sees gradients that a loss scaler has already unscaled (Detectron2's own clipping is per
    parameter, and cannot).
    """

    def __init__(self, params: Iterable, max_norm: float, **options):
        super().__init__(params, **options)
        self.max_norm = max_norm

    @torch.no_grad()
    def step(self, closure=None):
        """Clip the gradients, log their norm, and take a step of AdamW."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm or float("inf"))
        if has_event_storage():
            get_event_storage().put_scalar("gradient_norm", norm.item())
        return super().step(closure)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the state, also one of earlier versions, in which scalars had no dimension."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].view_as(parameter)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train at some stage, even if frozen now: not frozen encoders, nor TCL's partner."""
    frozen = [module for module in model.modules() if isinstance(module, FrozenDualEncoder)]
    frozen += [model.kp_head] if isinstance(model, TCL) else []
    frozen_parameters = {id(p) for module in frozen for p in module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in frozen_parameters}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return the trained parameters in two groups: with weight decay, and without it (biases and 1-d parameters)."""
    parameters = trained_parameters(model)
    # As officially: 1-d parameters and biases do not decay; scalars (gates, w, b, log-scales) do.
    decayed, spared = [], []
    for name, parameter in parameters.items():
        is_spared = parameter.ndim == 1 and not is_scalar(parameter) or name.endswith(".bias")
        (spared if is_spared else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW over the trained parameters.

    Raises:
        ValueError: the model has nothing to train, or a number or SOLVER.CLIP_GRADIENTS.CLIP_TYPE does not fit.
    """
    check_ranges(cfg)
    if isinstance(model, DenseCLIP):  # each dense head has its own
        groups = model.head.parameter_groups(cfg)
    else:
        groups = parameter_groups(model, cfg.SOLVER.WEIGHT_DECAY)
    if not any(group["params"] for group in groups):
        raise ValueError(f"{type(model).__name__} has nothing to train; evaluate it with --eval-only.")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    is_total = not clip.ENABLED or clip.CLIP_TYPE == "full_model"
    expect(is_total, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE, "full_model, the total norm")
    return FullModelClippedAdamW(
        groups,
        max_norm=clip.CLIP_VALUE if clip.ENABLED else 0.0,
        lr=cfg.SOLVER.BASE_LR,
        betas=tuple(cfg.SOLVER.BETAS),
        eps=cfg.SOLVER.EPS,
    )
