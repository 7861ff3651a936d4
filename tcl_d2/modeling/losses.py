"""TCL's losses: small heads, each of which can be built and used alone.

Every head takes a `Grounding` and gives its weighted loss, a scalar. With several processes all losses are over the
global batch: each process returns the global loss, so that DistributedDataParallel's mean of gradients is the gradient
of one process that holds the whole batch.
"""

import math
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
    """A batch after grounding, B images of this process and N texts of all: what losses need of each image and pair.

    A field is None where no head of the model `needs` it. Every field but `text` is of this process's images.
    """

    text: Tensor  # text embeddings [N, D] of the global batch, no gradient
    first: int = 0  # image i matches text first + i
    masked_image: Tensor | None = None  # CLIP's embeddings [B, D] of the images under their hard masks
    mean_embedding: Tensor | None = None  # of the pixels of the whole image, [B, D]
    embedding_variation: Tensor | None = None  # total variation of the pixel embeddings, [B]
    area: Tensor | None = None  # share of the image under the soft mask of each text, [B, N]
    mask_variation: Tensor | None = None  # total variation of these masks, [B, N]
    similarity: Tensor | None = None  # cosine of a text and the pixel embeddings averaged under its mask, [B, N]

    def matching(self, pairs: Tensor) -> Tensor:
        """Of values of all pairs [B, N], those of the matching ones [B]."""
        return pairs[:, self.first : self.first + len(pairs)].diagonal()


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


class LossHead(nn.Module):
    """A loss with its weight.

    A subclass has the `name` of its loss, its `weight_key` in MODEL.TCL.LOSS_WEIGHT, and the fields of a Grounding that
    it `needs`: nothing else is computed.
    """

    name: str
    weight_key: str
    needs: tuple[str, ...]

    @configurable
    def __init__(self, weight: float = 1.0):
        """
        Args:
            weight: factor of the loss, at least 0; ValueError for others.
        """
        super().__init__()
        if weight < 0:
            raise ValueError(f"MODEL.TCL.LOSS_WEIGHT.{self.weight_key} must be at least 0, not {weight}.")
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
    needs = ("masked_image",)

    def loss(self, grounding: Grounding) -> Tensor:
        image = gather(normalize(grounding.masked_image, 1))
        return info_nce(image @ normalize(grounding.text, 1).T, self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class FeatureTCLLoss(ContrastLoss):
    """Feature level: pixel embeddings, averaged under every text's soft mask, are contrasted with the texts."""

    name = "loss_tcl_feature"
    weight_key = "TCL_FEATURE"
    needs = ("similarity",)

    def loss(self, grounding: Grounding) -> Tensor:
        return info_nce(gather(grounding.similarity), self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class WholeImageLoss(ContrastLoss):
    """Ablation, in place of TCL: the mean pixel embedding of the whole image is contrasted with the texts."""

    name = "loss_whole_image"
    weight_key = "WHOLE_IMAGE"
    needs = ("mean_embedding",)

    def loss(self, grounding: Grounding) -> Tensor:
        image = gather(normalize(grounding.mean_embedding, 1))
        return info_nce(image @ normalize(grounding.text, 1).T, self.logit_scale)


class AreaLoss(LossHead):
    """Masks should cover the share `prior` of the image, on average over the batch."""

    needs = ("area",)
    prior_key: str  # in MODEL.TCL

    @configurable
    def __init__(self, weight: float = 1.0, prior: float = 0.0):
        super().__init__(weight=weight)
        self.prior = prior

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "prior": cfg.MODEL.TCL[cls.prior_key]}

    def loss(self, grounding: Grounding) -> Tensor:
        return (global_mean(self.areas(grounding)) - self.prior).abs()

    def areas(self, grounding: Grounding) -> Tensor:
        """What is averaged."""
        raise NotImplementedError


@TCL_LOSS_REGISTRY.register()
class PositiveAreaLoss(AreaLoss):
    """The masks of matching pairs."""

    name = "loss_area_pos"
    weight_key = "AREA_POS"
    prior_key = "AREA_PRIOR"

    def areas(self, grounding: Grounding) -> Tensor:
        return grounding.matching(grounding.area)


@TCL_LOSS_REGISTRY.register()
class NegativeAreaLoss(AreaLoss):
    """The masks of pairs that do not match: they should cover nothing."""

    name = "loss_area_neg"
    weight_key = "AREA_NEG"
    prior_key = "NEGATIVE_AREA_PRIOR"

    def areas(self, grounding: Grounding) -> Tensor:
        area = grounding.area
        if area.shape[1] == 1:  # a lone pair has no negatives: the prior is met
            return 0.0 * area[:, 0] + self.prior
        return (area.sum(1) - grounding.matching(area)) / (area.shape[1] - 1)


@TCL_LOSS_REGISTRY.register()
class ImageSmoothnessLoss(LossHead):
    """Total variation of the pixel embeddings."""

    name = "loss_tv_image"
    weight_key = "TV_IMAGE"
    needs = ("embedding_variation",)

    def loss(self, grounding: Grounding) -> Tensor:
        return grounding.embedding_variation.mean()


@TCL_LOSS_REGISTRY.register()
class MaskSmoothnessLoss(LossHead):
    """Total variation of the soft masks of all pairs."""

    name = "loss_tv_mask"
    weight_key = "TV_MASK"
    needs = ("mask_variation",)

    def loss(self, grounding: Grounding) -> Tensor:
        return grounding.mask_variation.mean()


def build_losses(cfg: CfgNode) -> list[nn.Module]:
    """Build the loss heads that MODEL.TCL.LOSS_HEADS names.

    Raises:
        ValueError: there are none, one stands twice, or one is not registered.
    """
    names = list(cfg.MODEL.TCL.LOSS_HEADS)
    registered = [name for name, _ in TCL_LOSS_REGISTRY]
    unknown = [name for name in names if name not in registered]
    twice = sorted({name for name in names if names.count(name) > 1})

    if unknown:
        raise ValueError(f"MODEL.TCL.LOSS_HEADS: no loss head '{unknown[0]}'. Known ones: {', '.join(registered)}.")
    if twice:
        raise ValueError(f"MODEL.TCL.LOSS_HEADS names {', '.join(twice)} twice; MODEL.TCL.LOSS_WEIGHT has its weight.")
    if not names:
        raise ValueError(f"MODEL.TCL.LOSS_HEADS is empty. Known ones: {', '.join(registered)}.")
    return [TCL_LOSS_REGISTRY.get(name)(cfg) for name in names]
