"""Gradients of a large batch in the memory of a small one (GradCache: Gao et al., RepL4NLP 2021)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _GradCache(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: Callable, parts: Sequence[tuple], *parameters: nn.Parameter) -> tuple[Tensor, ...]:
        ctx.function, ctx.parts = function, parts
        ctx.save_for_backward(*parameters)
        values_by_part = [function(*part) for part in parts]
        return tuple(torch.cat(values) for values in zip(*values_by_part))

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        totals = [torch.zeros_like(parameter) for parameter in ctx.saved_tensors]
        start = 0
        for part in ctx.parts:
            # Compute the part's values again, now with a graph
            with torch.enable_grad():
                values = ctx.function(*part)
            end = start + len(values[0])

            # Add its share of the parameters' gradients
            value_gradients = [gradient[start:end] for gradient in gradients]
            part_gradients = torch.autograd.grad(values, ctx.saved_tensors, value_gradients, allow_unused=True)
            for total, part_gradient in zip(totals, part_gradients):
                if part_gradient is not None:
                    total += part_gradient
            start = end
        return None, None, *totals


def forward_in_parts(
    function: Callable[..., Sequence[Tensor]], parts: Sequence[tuple], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, ...]:
    """Call `function` for each part of a batch, and join the tensors [b, ...] that it returns along their first axis.

    Nothing is held for the gradient of `parameters`: it is computed part by part with a second call of `function`,
    which must therefore not draw random numbers. Losses over the whole batch are exact.
    """
    device_type = parts[0][0].device.type
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)

    def with_present_autocast(*part: Tensor) -> Sequence[Tensor]:
        with torch.autocast(device_type, dtype, enabled=enabled):
            return function(*part)

    return _GradCache.apply(with_present_autocast, parts, *parameters)
