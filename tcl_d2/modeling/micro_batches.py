"""Values of a large batch and their gradients in the memory of a small one (GradCache: Gao et al., RepL4NLP 2021)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: Callable, parts: Sequence[tuple], *parameters: nn.Parameter) -> tuple[Tensor, ...]:
        ctx.function, ctx.parts = function, parts
        ctx.save_for_backward(*parameters)
        return tuple(map(torch.cat, zip(*(function(*part) for part in parts))))

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        totals, first = [torch.zeros_like(p) for p in ctx.saved_tensors], 0
        for part in ctx.parts:
            with torch.enable_grad():
                values = ctx.function(*part)
            last = first + len(values[0])
            own = [gradient[first:last] for gradient in gradients]
            for total, found in zip(totals, torch.autograd.grad(values, ctx.saved_tensors, own, allow_unused=True)):
                if found is not None:
                    total += found
            first = last
        return None, None, *totals


def in_parts(
    function: Callable[..., Sequence[Tensor]], parts: Sequence[tuple], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, ...]:
    """The tensors [b, ...] that `function` gives for each part, joined over the parts along their first axis.

    Nothing is held for the gradient: it is computed part by part, each with a second call of `function`, which must
    therefore not draw random numbers. What is made of the values between (losses over the whole batch) is exact.

    Args:
        function: gives tensors of one length for a part, all with a gradient.
        parts: its arguments.
        parameters: those that the values' gradient flows into.
    """
    kind = parts[0][0].device.type
    precision, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def as_now(*part: Tensor) -> Sequence[Tensor]:
        with torch.autocast(kind, precision, enabled=enabled):
            return function(*part)

    return _InParts.apply(as_now, parts, *parameters)
