"""Linear layers as oneDNN's 1 x 1 convolutions, on CPUs where torch's matrix products are slow."""

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CPUINFO = Path("/proc/cpuinfo")


@cache
def blas_is_slow() -> bool:
    """Tell whether fp32 matrix products are slow: by MKL, on a CPU that is not Intel's.

    There MKL does not use the CPU's wide vectors; oneDNN, which convolves for torch, does. Ask `is_fp32_on_cpu` first:
    this reads a file, which cannot be traced.
    """
    vendor = _CPUINFO.read_text() if _CPUINFO.exists() else platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" not in vendor


def is_fp32_on_cpu(x: Tensor) -> bool:
    """Tell whether an operation on x runs in fp32 on a CPU now, rather than being traced into a graph."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return x.device.type == "cpu" and x.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute F.linear(x, weight, bias): [..., C] by [C', C] and [C'] -> [..., C']; where BLAS is slow, by oneDNN."""
    if not (is_fp32_on_cpu(x) and blas_is_slow() and x.numel() > 0):
        return F.linear(x, weight, bias)

    # As pixels of a channels-last map, which is not copied
    pixels = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    result = F.conv2d(pixels, weight[..., None, None], bias)
    return result.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def run_layers(module: nn.Module, x: Tensor) -> Tensor:
    """Compute module(x) of a layer or a sequence of layers; where BLAS is slow, linear layers by oneDNN."""
    if not (is_fp32_on_cpu(x) and blas_is_slow()):
        return module(x)
    for layer in module if isinstance(module, nn.Sequential) else [module]:
        if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
            x = linear(x, layer.weight, layer.bias)
        else:  # others, quantized ones among them, have their own way
            x = layer(x)
    return x
