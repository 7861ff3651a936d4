"""MaskCLIP's refinements of the similarities of one image (Zhou et al., ECCV 2022): prompt denoising, key smoothing.

Both look at all classes at once. Where both are used, denoising comes first.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_SCALE = 100.0  # of the softmax over classes, CLIP's own
_ABSENT = -100.0  # the similarity of a class that is not in the image


def denoise_prompts(cosines: Tensor, threshold: float) -> Tensor:
    """Take classes for absent that are nowhere likely.

    Args:
        cosines: of patches and classes, [B, K, h, w].
        threshold: a class is absent from an image where its probability, by a softmax over the classes, is nowhere as
            large.

    Returns:
        cosines [B, K, h, w], -100 for absent classes.
    """
    probability = (_SCALE * cosines).softmax(1)
    absent = probability.amax((2, 3), keepdim=True) < threshold
    return cosines.masked_fill(absent, _ABSENT)


def smooth_keys(cosines: Tensor, keys: Tensor, threshold: float) -> Tensor:
    """Give unsure patches the classes of patches with similar keys.

    As released, keys are normalized over the patches, each channel by itself, and not over the channels of a patch.

    Args:
        cosines: of patches and classes, [B, K, h, w].
        keys: of the last attention, after its output projection, [B, h*w, C].
        threshold: patches whose largest probability, by a softmax over the classes, is less are smoothed.

    Returns:
        probabilities [B, K, h, w]; those of smoothed patches are sums that may be more than 1.
    """
    probability = (_SCALE * cosines).softmax(1)
    unit = F.normalize(keys.float(), dim=1)
    smoothed = (unit @ (unit.transpose(1, 2) @ probability.flatten(2).transpose(1, 2))).transpose(1, 2)

    unsure = probability.amax(1, keepdim=True) < threshold
    return torch.where(unsure, smoothed.unflatten(2, probability.shape[2:]), probability)
