"""GroupViT's multi-label contrastive loss: images are contrasted with nouns of their captions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..scalars import hold_scalars


def multi_label_info_nce(similarity: Tensor, log_scale: Tensor) -> Tensor:
    """Compute the symmetric InfoNCE of images with K texts each; K = 1 gives info_nce. The scale is at most 100.

    An image should find any of its texts among those of all images, and each text its image.

    Args:
        similarity: of image i and text k of image j, [B, B, K].
    """
    logits = similarity * log_scale.exp().clamp(max=100)
    positive = logits.diagonal().T.logsumexp(1)
    image_loss = (logits.flatten(1).logsumexp(1) - positive).mean()

    target = torch.arange(len(logits), device=logits.device)
    text_loss = F.cross_entropy(logits.transpose(0, 1), target[:, None].expand(-1, logits.shape[2]))
    return 0.5 * (image_loss + text_loss)


class MultiLabelLoss(nn.Module):
    """The loss, with a learnable scale of its own."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        hold_scalars(self)

    def forward(self, image: Tensor, texts: Tensor) -> Tensor:
        """Compute the loss of normalized image features [B, D] and features of their texts [B, K, D]."""
        return multi_label_info_nce(torch.einsum("id,jkd->ijk", image, texts), self.logit_scale)
