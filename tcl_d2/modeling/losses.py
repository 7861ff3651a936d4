"""TCL's losses: small heads, each of which can be built and used alone.

Every head takes a `Grounding` and gives its weighted loss, a scalar. With several processes all losses are over the
global batch: each process returns the global loss, so that DistributedDataParallel's mean of gradients is the gradient
of one process that holds the whole batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from .grounder import normalize

TCL_LOSS_REGISTRY = Registry("TCL_LOSS")
TCL_LOSS_REGISTRY.__doc__ = "Loss heads, named in MODEL.TCL.LOSS_HEADS: modules that take a Grounding, with a `name`."


@dataclass
class Grounding:
    """A batch after grounding: B images of this process, N texts of all processes.

    embedding: pixel embeddings [B, D, h, w], not normalised.
    text: text embeddings [N, D] of the global batch, no gradient.
    soft: soft masks [B, N, h, w] in (0, 1).
    hard: hard masks [B, 1, h, w] of the matching pairs, 0/1 with straight-through gradient.
    encode_masked: masks [B, 1, h, w] -> CLIP's embeddings [B, D] of the images under them.
    first: index in `text` of the text of image 0; image i matches text first + i.
    """

    embedding: Tensor
    text: Tensor
    soft: Tensor
    hard: Tensor
    encode_masked: Callable[[Tensor], Tensor]
    first: int = 0

    @property
    def own(self) -> slice:
        """The texts of this process's images."""
        return slice(self.first, self.first + len(self.soft))

    @property
    def positive(self) -> Tensor:
        """Soft masks [B, h, w] of the matching pairs."""
        return self.soft[:, self.own].diagonal().permute(2, 0, 1)


class _Gather(torch.autograd.Function):
    """All-gather along the first axis; its gradient is the sum of all processes' gradients of this process's part.

    Not torch.distributed.nn.functional.all_gather, which confuses gradients that are not contiguous on gloo.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(comm.get_world_size())]
        torch.distributed.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(gradient)
        return gradient.chunk(comm.get_world_size())[comm.get_rank()]


def gather(x: Tensor) -> Tensor:
    """Concatenates x [B, ...] of all processes, in rank order; gradient flows back to each process's part."""
    return x if comm.get_world_size() == 1 else _Gather.apply(x)


def global_mean(x: Tensor) -> Tensor:
    """Mean over the equal-sized x of all processes, with gradient."""
    return gather(x.mean()[None]).mean()


def info_nce(similarity: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of similarities [B, B] whose diagonal matches; the scale is at most 100."""
    logits = similarity * log_scale.exp().clamp(max=100)
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of horizontal neighbours plus that of vertical ones, of maps [..., h, w]."""
    zero = x.new_zeros(())  # a map one pixel wide has no such neighbours
    rows = x.diff(dim=-2).abs().mean() if x.shape[-2] > 1 else zero
    columns = x.diff(dim=-1).abs().mean() if x.shape[-1] > 1 else zero
    return rows + columns


def masked_mean(embedding: Tensor, masks: Tensor) -> Tensor:
    """Mean of pixel embeddings [B, D, h, w] under each soft mask [B, N, h, w] -> [B, N, D]."""
    summed = torch.einsum("bdhw,bnhw->bnd", embedding, masks)
    return summed / (masks.sum((2, 3))[..., None] + 1e-6)


class LossHead(nn.Module):
    """A loss with its weight; a subclass has the `name` of its loss and its `weight_key` in MODEL.TCL.LOSS_WEIGHT."""

    name: str
    weight_key: str

    @configurable
    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT[cls.weight_key]}

    def forward(self, grounding: Grounding) -> Tensor:
        return self.weight * self.loss(grounding)

    def loss(self, grounding: Grounding) -> Tensor:
        raise NotImplementedError


class ContrastLoss(LossHead):
    """A head with a learnable log-scale for its similarities."""

    @configurable
    def __init__(self, weight: float = 1.0):
        super().__init__(weight=weight)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


@TCL_LOSS_REGISTRY.register()
class ImageTCLLoss(ContrastLoss):
    """Image level: the masked image, as CLIP sees it, is contrasted with the texts."""

    name = "loss_tcl_image"
    weight_key = "TCL_IMAGE"

    def loss(self, grounding: Grounding) -> Tensor:
        image = gather(normalize(grounding.encode_masked(grounding.hard), 1))
        return info_nce(image @ normalize(grounding.text, 1).T, self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class FeatureTCLLoss(ContrastLoss):
    """Feature level: pixel embeddings, averaged under every text's soft mask, are contrasted with the texts."""

    name = "loss_tcl_feature"
    weight_key = "TCL_FEATURE"

    def loss(self, grounding: Grounding) -> Tensor:
        grounded = normalize(masked_mean(grounding.embedding, grounding.soft), 2)  # [B, N, D]
        similarity = torch.einsum("bnd,nd->bn", grounded, normalize(grounding.text, 1))
        return info_nce(gather(similarity), self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class WholeImageLoss(ContrastLoss):
    """Ablation, in place of TCL: the mean pixel embedding of the whole image is contrasted with the texts."""

    name = "loss_whole_image"
    weight_key = "WHOLE_IMAGE"

    def loss(self, grounding: Grounding) -> Tensor:
        image = gather(normalize(grounding.embedding.mean((2, 3)), 1))
        return info_nce(image @ normalize(grounding.text, 1).T, self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class PositiveAreaLoss(LossHead):
    """The masks of matching pairs cover, on average over the batch, the share `prior` of the image."""

    name = "loss_area_pos"
    weight_key = "AREA_POS"

    @configurable
    def __init__(self, weight: float = 1.0, prior: float = 0.4):
        super().__init__(weight=weight)
        self.prior = prior

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "prior": cfg.MODEL.TCL.AREA_PRIOR}

    def loss(self, grounding: Grounding) -> Tensor:
        return (global_mean(grounding.positive) - self.prior).abs()


@TCL_LOSS_REGISTRY.register()
class NegativeAreaLoss(LossHead):
    """The masks of pairs that do not match cover, on average over the batch, the share `prior`: nothing."""

    name = "loss_area_neg"
    weight_key = "AREA_NEG"

    @configurable
    def __init__(self, weight: float = 1.0, prior: float = 0.0):
        super().__init__(weight=weight)
        self.prior = prior

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "prior": cfg.MODEL.TCL.NEGATIVE_AREA_PRIOR}

    def loss(self, grounding: Grounding) -> Tensor:
        soft = grounding.soft
        if soft.shape[1] == 1:  # a lone pair has no negatives
            return 0.0 * soft.sum()
        negatives = soft.mean((2, 3)).sum() - grounding.positive.mean((1, 2)).sum()
        mean = negatives / (soft.shape[0] * (soft.shape[1] - 1))
        return (global_mean(mean) - self.prior).abs()


@TCL_LOSS_REGISTRY.register()
class ImageSmoothnessLoss(LossHead):
    """Total variation of the pixel embeddings."""

    name = "loss_tv_image"
    weight_key = "TV_IMAGE"

    def loss(self, grounding: Grounding) -> Tensor:
        return total_variation(grounding.embedding)


@TCL_LOSS_REGISTRY.register()
class MaskSmoothnessLoss(LossHead):
    """Total variation of the soft masks of all pairs."""

    name = "loss_tv_mask"
    weight_key = "TV_MASK"

    def loss(self, grounding: Grounding) -> Tensor:
        return total_variation(grounding.soft)


def build_losses(cfg: CfgNode) -> list[nn.Module]:
    """The loss heads that MODEL.TCL.LOSS_HEADS names."""
    return [TCL_LOSS_REGISTRY.get(head)(cfg) for head in cfg.MODEL.TCL.LOSS_HEADS]
