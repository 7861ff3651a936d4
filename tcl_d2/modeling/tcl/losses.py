"""TCL's losses: small heads, each of which can be built and used alone.

Every head turns a `Grounding` into its weighted loss, a scalar. With several processes, a head's loss averaged over the
processes must be the loss of one process that holds the whole batch, and so must its gradient, which
DistributedDataParallel averages. See LossHead.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ...utils.errors import expect
from ..functional import gather, info_nce, normalize
from ..scalars import hold_scalars

TCL_LOSS_REGISTRY = Registry("TCL_LOSS")
TCL_LOSS_REGISTRY.__doc__ = "Loss heads, named in MODEL.TCL.LOSS_HEADS: modules that take a Grounding, with a `name`."


@dataclass
class Grounding:
    """What losses need of a batch: statistics of B images of this process and N texts of all processes.

    A field is None where no head of the model `needs` it, so a head need not look. The last fields, LABEL_STATISTICS,
    are of this process's L labeled images, the others of its images with captions.

    Attributes:
        text: text features [N, D] of the global batch, no gradient.
        text_offset: image i matches text `text_offset + i`.
        masked_image: CLIP's features [B, D] of the images under their hard masks.
        mean_embedding: mean pixel embedding of the whole image, [B, D].
        image_tv: total variation of the pixel embeddings, [B].
        area: share of the image under the soft mask of each text, [B, N].
        mask_tv: total variation of these masks, [B, N].
        similarity: cosine of a text and the pixel embeddings averaged under its mask, [B, N].
        sem_seg_bce: binary cross-entropy of the soft masks of an image's classes and its label, [L].
        sem_seg_dice: dice loss of the classes that are there, [L].
    """

    text: Tensor | Any = None
    text_offset: int = 0
    masked_image: Tensor | Any = None
    mean_embedding: Tensor | Any = None
    image_tv: Tensor | Any = None
    area: Tensor | Any = None
    mask_tv: Tensor | Any = None
    similarity: Tensor | Any = None
    sem_seg_bce: Tensor | Any = None
    sem_seg_dice: Tensor | Any = None

    def positive_pairs(self, pairs: Tensor) -> Tensor:
        """Take those of the matching pairs [B] from values of all pairs [B, N]."""
        return pairs[:, self.text_offset : self.text_offset + len(pairs)].diagonal()


LABEL_STATISTICS = ("sem_seg_bce", "sem_seg_dice")
STATISTICS = tuple(field.name for field in fields(Grounding) if field.name not in ("text", "text_offset"))


def global_mean(x: Tensor) -> Tensor:
    """Average over the equal-sized x of all processes, with gradient."""
    return gather(x.mean()[None]).mean()


def labeled_mean(x: Tensor) -> Tensor:
    """Average x [L] over the labeled images of all processes; 0 where there are none.

    Processes may have different numbers of them: the mean is the average over processes of what this returns.
    """
    mean_count = gather(x.new_tensor([float(len(x))])).mean()
    return x.sum() / mean_count.clamp(min=1e-6)


class LossHead(nn.Module):
    """A loss with its weight.

    A subclass has the `name` of its loss, its `weight_key` in MODEL.TCL.LOSS_WEIGHT, and the statistics of a Grounding
    that it `needs` (see STATISTICS); nothing else is computed.

    A plain mean over images or pairs may stay local to a process: all have equally many, so the mean over processes is
    that of the whole batch. Anything else (the absolute value of a mean, a contrast) must `gather` first.
    """

    name: str
    weight_key: str
    needs: tuple[str, ...]

    @configurable
    def __init__(self, weight: float = 1.0):
        super().__init__()
        unknown = [name for name in self.needs if name not in STATISTICS]
        if unknown:
            known = ", ".join(STATISTICS)
            raise ValueError(f"{type(self).__name__} needs '{unknown[0]}', which no Grounding has. Known: {known}.")
        expect(weight >= 0, f"MODEL.TCL.LOSS_WEIGHT.{self.weight_key}", weight, "at least 0")
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        key = f"MODEL.TCL.LOSS_WEIGHT.{cls.weight_key}"
        if cls.weight_key not in cfg.MODEL.TCL.LOSS_WEIGHT:
            raise ValueError(
                f"{cls.__name__} needs the key {key}: add it by tcl_d2.config.add_key where it is registered."
            )
        return {"weight": cfg.MODEL.TCL.LOSS_WEIGHT[cls.weight_key]}

    def forward(self, grounding: Grounding) -> Tensor:
        return self.weight * self.loss(grounding)

    def loss(self, grounding: Grounding) -> Tensor:
        """Compute the loss without its weight, a scalar."""
        raise NotImplementedError


class ContrastLoss(LossHead):
    """A head with a learnable log-scale for its similarities."""

    @configurable
    def __init__(self, weight: float = 1.0):
        super().__init__(weight=weight)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        hold_scalars(self)


class ImageContrastLoss(ContrastLoss):
    """A feature of each image, the statistic that the head needs, contrasted with the texts."""

    def loss(self, grounding: Grounding) -> Tensor:
        (name,) = self.needs
        image = gather(normalize(getattr(grounding, name), 1))
        return info_nce(image @ normalize(grounding.text, 1).T, self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class ImageTCLLoss(ImageContrastLoss):
    """Image level: the masked image, as CLIP sees it, contrasted with the texts."""

    name = "loss_tcl_image"
    weight_key = "TCL_IMAGE"
    needs = ("masked_image",)


@TCL_LOSS_REGISTRY.register()
class FeatureTCLLoss(ContrastLoss):
    """Feature level: pixel embeddings, averaged under every text's soft mask, contrasted with the texts."""

    name = "loss_tcl_feature"
    weight_key = "TCL_FEATURE"
    needs = ("similarity",)

    def loss(self, grounding: Grounding) -> Tensor:
        return info_nce(gather(grounding.similarity), self.logit_scale)


@TCL_LOSS_REGISTRY.register()
class WholeImageLoss(ImageContrastLoss):
    """Ablation, in place of TCL: the mean pixel embedding of the whole image contrasted with the texts."""

    name = "loss_whole_image"
    weight_key = "WHOLE_IMAGE"
    needs = ("mean_embedding",)


class AreaLoss(LossHead):
    """Masks should cover a share of the image, the prior, on average over the batch."""

    needs = ("area",)
    prior_key: str  # in MODEL.TCL

    @configurable
    def __init__(self, weight: float = 1.0, prior: float = 0.0):
        super().__init__(weight=weight)
        if not 0 <= prior <= 1:
            raise ValueError(f"MODEL.TCL.{self.prior_key} is a share in 0..1, not {prior}.")
        self.prior = prior

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "prior": cfg.MODEL.TCL[cls.prior_key]}

    def loss(self, grounding: Grounding) -> Tensor:
        return (global_mean(self.areas(grounding)) - self.prior).abs()

    def areas(self, grounding: Grounding) -> Tensor:
        """Return the areas whose mean should be the prior, [B]."""
        raise NotImplementedError


@TCL_LOSS_REGISTRY.register()
class PositiveAreaLoss(AreaLoss):
    """The masks of matching pairs."""

    name = "loss_area_pos"
    weight_key = "AREA_POS"
    prior_key = "AREA_PRIOR"

    def areas(self, grounding: Grounding) -> Tensor:
        return grounding.positive_pairs(grounding.area)


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
        return (area.sum(1) - grounding.positive_pairs(area)) / (area.shape[1] - 1)


@TCL_LOSS_REGISTRY.register()
class ImageTVLoss(LossHead):
    """Total variation of the pixel embeddings."""

    name = "loss_tv_image"
    weight_key = "TV_IMAGE"
    needs = ("image_tv",)

    def loss(self, grounding: Grounding) -> Tensor:
        return grounding.image_tv.mean()


@TCL_LOSS_REGISTRY.register()
class MaskTVLoss(LossHead):
    """Total variation of the soft masks of all pairs."""

    name = "loss_tv_mask"
    weight_key = "TV_MASK"
    needs = ("mask_tv",)

    def loss(self, grounding: Grounding) -> Tensor:
        return grounding.mask_tv.mean()


class SemSegLoss(LossHead):
    """A mean over labeled images."""

    def loss(self, grounding: Grounding) -> Tensor:
        (name,) = self.needs
        return labeled_mean(getattr(grounding, name))


@TCL_LOSS_REGISTRY.register()
class SemSegBCELoss(SemSegLoss):
    """Binary cross-entropy of the soft masks of an image's classes, and of absent ones, with the label."""

    name = "loss_sem_seg_bce"
    weight_key = "SEM_SEG_BCE"
    needs = ("sem_seg_bce",)


@TCL_LOSS_REGISTRY.register()
class SemSegDiceLoss(SemSegLoss):
    """Dice loss of the soft masks of classes that are there, with the label."""

    name = "loss_sem_seg_dice"
    weight_key = "SEM_SEG_DICE"
    needs = ("sem_seg_dice",)


def takes_labels(head: LossHead) -> bool:
    """Tell whether a loss head is for labeled images, rather than for images with captions."""
    return bool(head.needs) and set(head.needs) <= set(LABEL_STATISTICS)


def build_losses(cfg: CfgNode) -> list[LossHead]:
    """Build the loss heads in MODEL.TCL.LOSS_HEADS and EXTRA_LOSS_HEADS; ValueError for none, unknown, or repeated."""
    names = [*cfg.MODEL.TCL.LOSS_HEADS, *cfg.MODEL.TCL.EXTRA_LOSS_HEADS]
    known = ", ".join(name for name, _ in TCL_LOSS_REGISTRY)
    if not names:
        raise ValueError(f"MODEL.TCL.LOSS_HEADS is empty. Known ones: {known}.")
    for name in names:
        if name not in TCL_LOSS_REGISTRY:
            raise ValueError(f"MODEL.TCL.LOSS_HEADS: no loss head '{name}'. Known ones: {known}.")
        if names.count(name) > 1:
            raise ValueError(f"MODEL.TCL.LOSS_HEADS names {name} twice; MODEL.TCL.LOSS_WEIGHT has its weight.")
    return [TCL_LOSS_REGISTRY.get(name)(cfg) for name in names]
