"""Resizing as products with matrices: the same arithmetic for all sizes, so that it can be exported."""

import torch
from torch import Tensor

_A = -0.75  # of Keys' kernel, as in torch and OpenCV
_A_ANTIALIAS = -0.5  # with antialias, as in torch and PIL


def linear_matrix(source: int, target: int, device: torch.device | None = None) -> Tensor:
    """Return the matrix [target, source] that resizes a side as F.interpolate's bilinear with align_corners=True."""
    step = (source - 1) / max(target - 1, 1)
    position = torch.arange(target, device=device, dtype=torch.float32) * step
    first = position.floor()
    share = position - first
    return _matrix(first, torch.stack([1 - share, share], 1), 0, source)


def cubic_matrix(source: int, target: int, scale: float, device: torch.device | None = None) -> Tensor:
    """Return the matrix [target, source] that resizes a side as F.interpolate's bicubic does, without antialias.

    The side grows by the factor `scale`, which need not be target / source.
    """
    position = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) / scale - 0.5
    first = position.floor()
    share = position - first
    weights = [_far(1 + share), _near(share), _near(1 - share), _far(2 - share)]
    return _matrix(first, torch.stack(weights, 1), -1, source)


def antialias_matrix(source: int, target: int, mode: str, device: torch.device | None = None) -> Tensor:
    """Return the matrix [target, source] that resizes a side as F.interpolate's `mode` does with antialias.

    Args:
        mode: "bicubic" or "bilinear".
    """
    scale = torch.scalar_tensor(source / target, device=device)
    centers = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * scale
    pixels = torch.arange(source, device=device, dtype=torch.float32) + 0.5
    distance = (pixels - centers[:, None]).abs() / scale.clamp(min=1)  # a smaller side averages over more pixels

    if mode == "bilinear":
        weights = (1 - distance).clamp(min=0)
    else:
        near, far = _near(distance, _A_ANTIALIAS), _far(distance, _A_ANTIALIAS)
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    return weights / weights.sum(1, keepdim=True)


def _matrix(first: Tensor, weights: Tensor, offset: int, source: int) -> Tensor:
    """Put weights [target, n] of neighbors, from `first` + `offset` on, into a matrix; borders are replicated."""
    neighbors = first.long()[:, None] + torch.arange(offset, offset + weights.shape[1], device=first.device)
    is_neighbor = neighbors.clamp(0, source - 1)[..., None] == torch.arange(source, device=first.device)
    return (weights[..., None] * is_neighbor).sum(1)


def _near(distance: Tensor, a: float = _A) -> Tensor:
    """Return Keys' kernel at distances in 0..1."""
    return ((a + 2) * distance - (a + 3)) * distance * distance + 1


def _far(distance: Tensor, a: float = _A) -> Tensor:
    """Return Keys' kernel at distances in 1..2."""
    return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
