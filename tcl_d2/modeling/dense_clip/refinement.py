"""MaskCLIP's prompt denoising and key smoothing (Zhou et al., ECCV 2022), in this order; both need all classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

SOFTMAX_SCALE = 100.0  # over classes, CLIP's own
_ABSENT = -100.0  # cosine of a class that is not in the image


def denoise_prompts(cosines: Tensor, threshold: float) -> Tensor:
    """Set the cosines [B, K, h, w] of a class to -100 in images where it is nowhere likely.

    That is where its probability, by a softmax over the classes, is below the threshold in every patch.
    """
    probability = (SOFTMAX_SCALE * cosines).softmax(1)
    absent = probability.amax((2, 3), keepdim=True) < threshold
    return cosines.masked_fill(absent, _ABSENT)


def smooth_keys(cosines: Tensor, keys: Tensor, threshold: float) -> Tensor:
    """Turn cosines [B, K, h, w] into probabilities, and give unsure patches those of patches with similar keys.

    As released, keys are normalized over the patches, each channel by itself, not over the channels of a patch; and
    the probabilities of smoothed patches are sums that may be more than 1.

    Args:
        keys: of the last attention, after its output projection, [B, h*w, C].
        threshold: patches whose largest probability, by a softmax over the classes, is less are smoothed.
    """
    probability = (SOFTMAX_SCALE * cosines).softmax(1)
    unit = F.normalize(keys.float(), dim=1)
    smoothed = (unit @ (unit.transpose(1, 2) @ probability.flatten(2).transpose(1, 2))).transpose(1, 2)

    unsure = probability.amax(1, keepdim=True) < threshold
    return torch.where(unsure, smoothed.unflatten(2, probability.shape[2:]), probability)
