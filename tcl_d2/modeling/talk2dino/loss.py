"""What the projection learns from: captions against the heads of the class token's attention that fit them best."""

import math

import torch
from torch import Tensor

from ..functional import gather, info_nce, normalize

_LOG_SCALE = math.log(1 / 0.07)  # of the cosines; it is not learned


def contrast(text: Tensor, heads: Tensor, divided: bool = True) -> Tensor:
    """Compute the contrast of the captions and images of all processes' batches, by the release's rule.

    Each image is seen by the head that its own caption is nearest to, also against the other captions.

    Args:
        text: projected captions, [B, C].
        heads: embeddings of their images by each head, [B, heads, C].
        divided: whether the loss is divided by the square of the number of captions, as in the release.
    """
    with torch.autocast(text.device.type, enabled=False):
        text, heads = normalize(text, 1), normalize(heads, 2)
        text, images = gather(text), gather(own_heads(text, heads))
        scores = text @ images.T
        loss = info_nce(scores, scores.new_tensor(_LOG_SCALE))
        return loss / len(text) ** 2 if divided else loss


def own_heads(text: Tensor, heads: Tensor) -> Tensor:
    """Choose for each image the head that its caption is nearest to: [B, C], [B, heads, C] -> [B, C], all unit."""
    chosen = torch.einsum("bc,bhc->bh", text.detach(), heads).argmax(1)
    return heads[torch.arange(len(heads), device=heads.device), chosen]
