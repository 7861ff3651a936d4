"""Small functions that several methods share."""

import torch
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor
from torch.nn import functional as F


def normalize(x: Tensor, dim: int) -> Tensor:
    """Normalize to length 1 along `dim`, in fp32, with the official release's eps."""
    return F.normalize(x.float(), dim=dim, eps=1e-6)


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Drop what comes before the patches and fold tokens [B, p + h*w, C] to a map [B, C, h, w] (channels last)."""
    return tokens[:, -grid[0] * grid[1] :].unflatten(1, grid).permute(0, 3, 1, 2)


def self_similarity(features: Tensor) -> Tensor:
    """Compute the cosines [B, h*w, h*w] of the patches of features [B, C, h, w]."""
    unit = F.normalize(features.flatten(2), dim=1)
    return unit.transpose(1, 2) @ unit


def gather(x: Tensor) -> Tensor:
    """Concatenate x [B, ...] of all processes, in rank order; gradient flows back to each process's part."""
    return torch.cat(differentiable_all_gather(x))


def info_nce(similarity: Tensor, log_scale: Tensor) -> Tensor:
    """Compute the symmetric InfoNCE of similarities [B, B] whose diagonal matches; the scale is at most 100."""
    logits = similarity * log_scale.exp().clamp(max=100)
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def map_size(x: Tensor) -> tuple[int, int]:
    """Return the height and width of images or maps [..., H, W]."""
    height, width = x.shape[-2:]
    return height, width


def resize_scores(scores: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize scores [B, K, h, w] to `size`, bilinear; nothing is done where they have it."""
    if scores.shape[-2:] == size:
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=align_corners)
