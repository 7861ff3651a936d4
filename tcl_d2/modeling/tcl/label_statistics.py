"""Statistics of labeled images: how well the soft masks of their classes fit the label."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .grounder import Sim2Mask


class MaskTarget(NamedTuple):
    """What the soft masks of C classes of a labeled image should be, at the masks' size.

    Attributes:
        text: text features [W, D] of the words of these classes, class by class.
        words_per_class: number of words of each class.
        shares: share of each class in the part of a pixel that counts, [C, h, w].
        weight: share of a pixel that counts, as it is not ignored, [h, w].
    """

    text: Tensor
    words_per_class: list[int]
    shares: Tensor
    weight: Tensor


def make_mask_target(
    sem_seg: Tensor,
    classes: Tensor,
    ignore_label: int,
    text: Tensor,
    class_of_word: Tensor,
    size: tuple[int, int],
) -> MaskTarget:
    """Resize a label to the masks' size (h, w), averaging the label's pixels that a mask's pixel covers.

    Args:
        sem_seg: class of each pixel, or `ignore_label`, int64 [H, W].
        classes: those whose masks are compared, int64 [C], on the CPU.
        text: text features of the dataset's words [W, D].
        class_of_word: class of each of these words, int64 [W], on the CPU.
    """
    # The words of these classes
    words_by_class = [torch.nonzero(class_of_word == k)[:, 0] for k in classes]
    words = torch.cat([*words_by_class, class_of_word.new_empty(0)])

    # The label at the masks' size
    counts = (sem_seg != ignore_label).float()
    is_class = (sem_seg == classes.to(sem_seg.device)[:, None, None]).float()
    pooled = F.adaptive_avg_pool2d(torch.cat([counts[None], is_class]), size)
    weight = pooled[0]
    shares = pooled[1:] / weight.clamp(min=1e-6)
    return MaskTarget(text[words.to(text.device)], [len(words) for words in words_by_class], shares, weight)


def masked_bce(logits: Tensor, target: MaskTarget) -> Tensor:
    """Compute the mean binary cross-entropy of logits [C, h, w] over classes and the pixels that count."""
    losses = F.binary_cross_entropy_with_logits(logits, target.shares, reduction="none") * target.weight
    return losses.sum() / (len(logits) * target.weight.sum()).clamp(min=1e-6)


def masked_dice(logits: Tensor, target: MaskTarget) -> Tensor:
    """Compute 1 - (2 |A and B| + 1) / (|A| + |B| + 1) of masks A and label B, over the pixels that count.

    The mean is over the classes that are there. Absent ones are left to the cross-entropy: an empty label would ask for
    a mask of less than one pixel in all, which outweighs all else.
    """
    masks = torch.sigmoid(logits) * target.weight
    common = (masks * target.shares).sum((1, 2))
    area = (target.shares * target.weight).sum((1, 2))
    losses = 1 - (2 * common + 1) / (masks.sum((1, 2)) + area + 1)
    is_there = area > 0
    return (losses * is_there).sum() / is_there.sum().clamp(min=1)


def sem_seg_statistics(embedding: Tensor, targets: list[MaskTarget], sim2mask: Sim2Mask) -> dict[str, Tensor]:
    """Compute how well soft masks fit labels: masked_bce and masked_dice of each image, by statistic, [L] each.

    A class has the mask of its word that fits a pixel best. Images without a class to compare, or whose label is all
    ignored, get 0.

    Args:
        embedding: pixel embeddings [L, D, h, w] of labeled images.
    """
    no_fit = 0 * embedding.sum((1, 2, 3))[:, None].expand(-1, 2)  # with a gradient, also where there are no images
    fits = [no_fit[:0]]
    for i, target in enumerate(targets):
        if not target.words_per_class:
            fits.append(no_fit[i : i + 1])
            continue
        word_logits = sim2mask(embedding[i : i + 1], target.text)[0]
        logits = torch.stack([words.amax(0) for words in word_logits.split(target.words_per_class)])
        fits.append(torch.stack([masked_bce(logits, target), masked_dice(logits, target)])[None])

    bce, dice = torch.cat(fits).unbind(1)
    return {"sem_seg_bce": bce, "sem_seg_dice": dice}
