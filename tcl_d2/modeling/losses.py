"""TCL's losses: small heads, each of which can be built and used alone.

Every head takes a `Grounding` and gives its weighted loss, a scalar. With several processes all losses are over the
global batch: each process returns the global loss, so that DistributedDataParallel's mean of gradients is the gradient
of one process that holds the whole batch.
"""

import math
from dataclasses import dataclass
from typing import Callable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
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


def gather(x: Tensor) -> Tensor:
    """Concatenates x [B, ...] of all processes, in rank order; gradient flows back to each process's part."""
    return x if comm.get_world_size() == 1 else torch.cat(all_gather(x.contiguous()))


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


def _new_log_scale() -> nn.Parameter:
    return nn.Parameter(torch.tensor(math.log(1 / 0.07)))


@TCL_LOSS_REGISTRY.register()
class ImageTCLLoss(nn.Module):
    """Image level: the masked image, as CLIP sees it, is contrasted with the texts."""

    name = "loss_tcl_image"

    @configurable
    def __init__(self, weight: float = 0.1):
        super().__init__()
        self.weight = weight
        self.logit_scale = _new_log_scale()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT.TCL_IMAGE}

    def forward(self, grounding: Grounding) -> Tensor:
        image = gather(normalize(grounding.encode_masked(grounding.hard), 1))
        similarity = image @ normalize(grounding.text, 1).T
        return self.weight * info_nce(similarity, self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class FeatureTCLLoss(nn.Module):
    """Feature level: pixel embeddings, averaged under every text's soft mask, are contrasted with the texts."""

    name = "loss_tcl_feature"

    @configurable
    def __init__(self, weight: float = 0.1):
        super().__init__()
        self.weight = weight
        self.logit_scale = _new_log_scale()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT.TCL_FEATURE}

    def forward(self, grounding: Grounding) -> Tensor:
        grounded = normalize(masked_mean(grounding.embedding, grounding.soft), 2)  # [B, N, D]
        similarity = torch.einsum("bnd,nd->bn", grounded, normalize(grounding.text, 1))
        return self.weight * info_nce(gather(similarity), self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class PositiveAreaLoss(nn.Module):
    """The masks of matching pairs cover, on average, the share `prior` of the image."""

    name = "loss_area_pos"

    @configurable
    def __init__(self, weight: float = 0.4, prior: float = 0.4):
        super().__init__()
        self.weight = weight
        self.prior = prior

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT.AREA_POS, "prior": cfg.MODEL.TCL.AREA_PRIOR}

    def forward(self, grounding: Grounding) -> Tensor:
        return self.weight * (global_mean(grounding.positive) - self.prior).abs()


@TCL_LOSS_REGISTRY.register()
class NegativeAreaLoss(nn.Module):
    """The masks of pairs that do not match cover, on average, the share `prior`: nothing."""

    name = "loss_area_neg"

    @configurable
    def __init__(self, weight: float = 0.4, prior: float = 0.0):
        super().__init__()
        self.weight = weight
        self.prior = prior

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT.AREA_NEG, "prior": cfg.MODEL.TCL.NEGATIVE_AREA_PRIOR}

    def forward(self, grounding: Grounding) -> Tensor:
        soft = grounding.soft
        if soft.shape[1] == 1:  # a lone pair has no negatives
            return 0.0 * soft.sum()
        negatives = soft.mean((2, 3)).sum() - grounding.positive.mean((1, 2)).sum()
        mean = negatives / (soft.shape[0] * (soft.shape[1] - 1))
        return self.weight * (global_mean(mean) - self.prior).abs()


@TCL_LOSS_REGISTRY.register()
class ImageSmoothnessLoss(nn.Module):
    """Total variation of the pixel embeddings."""

    name = "loss_tv_image"

    @configurable
    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT.TV_IMAGE}

    def forward(self, grounding: Grounding) -> Tensor:
        return self.weight * total_variation(grounding.embedding)


@TCL_LOSS_REGISTRY.register()
class MaskSmoothnessLoss(nn.Module):
    """Total variation of the soft masks of all pairs."""

    name = "loss_tv_mask"

    @configurable
    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT.TV_MASK}

    def forward(self, grounding: Grounding) -> Tensor:
        return self.weight * total_variation(grounding.soft)


@TCL_LOSS_REGISTRY.register()
class WholeImageLoss(nn.Module):
    """Ablation, in place of TCL: the mean pixel embedding of the whole image is contrasted with the texts."""

    name = "loss_whole_image"

    @configurable
    def __init__(self, weight: float = 0.1):
        super().__init__()
        self.weight = weight
        self.logit_scale = _new_log_scale()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT.WHOLE_IMAGE}

    def forward(self, grounding: Grounding) -> Tensor:
        image = gather(normalize(grounding.embedding.mean((2, 3)), 1))
        return self.weight * info_nce(image @ normalize(grounding.text, 1).T, self.logit_scale)


def build_losses(cfg: CfgNode) -> list[nn.Module]:
    """The loss heads that MODEL.TCL.LOSS_HEADS names."""
    return [TCL_LOSS_REGISTRY.get(head)(cfg) for head in cfg.MODEL.TCL.LOSS_HEADS]
