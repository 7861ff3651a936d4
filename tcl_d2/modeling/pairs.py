"""What the losses need of the soft masks of all pairs of B images and N texts, without holding B x N masks."""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .grounder import Sim2Mask, normalize

# The masks of so many texts are held at once, as a share of the embedding's D: a map of them takes that share of the
# memory that the pixel embeddings take, whatever the batch and the image size, and some ten maps are needed.
_SHARE_AT_ONCE = 1 / 8


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of horizontal plus of vertical neighbours, of each map [..., h, w] -> [...]."""
    zero = x.new_zeros(x.shape[:-2])  # a map one pixel wide has no such neighbours
    rows = _mean_size(x.diff(dim=-2)) if x.shape[-2] > 1 else zero
    columns = _mean_size(x.diff(dim=-1)) if x.shape[-1] > 1 else zero
    return rows + columns


def _mean_size(x: Tensor) -> Tensor:
    """x.abs().mean((-2, -1)), without a copy of x."""
    return torch.linalg.vector_norm(x, 1, dim=(-2, -1)) / x.shape[-2:].numel()


def masked_mean(embedding: Tensor, masks: Tensor) -> Tensor:
    """Mean of pixel embeddings [B, D, h, w] under each soft mask [B, N, h, w] -> [B, N, D]."""
    summed = torch.einsum("bdhw,bnhw->bnd", embedding, masks)
    return summed / (masks.sum((2, 3))[..., None] + 1e-6)


def mask_statistics(embedding: Tensor, masks: Tensor, text: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    """Of soft masks [B, N, h, w] that are at hand, [B, N] each, those that are wanted:

    area: their share of the image. mask_variation: their total variation. similarity: the cosine of text [N, D] and the
    pixel embeddings [B, D, h, w] averaged under the mask.
    """
    found = {}
    if "area" in wanted:
        found["area"] = masks.mean((2, 3))
    if "mask_variation" in wanted:
        found["mask_variation"] = total_variation(masks)
    if "similarity" in wanted:
        grounded = normalize(masked_mean(embedding, masks), 2)
        found["similarity"] = torch.einsum("bnd,nd->bn", grounded, normalize(text, 1))
    return found


def pair_statistics(embedding: Tensor, text: Tensor, sim2mask: Sim2Mask, wanted: Collection[str]) -> dict[str, Tensor]:
    """mask_statistics of the soft masks that `sim2mask` makes of every image and every text.

    Masks are made for a part of the texts at a time, and made again for the gradient: exact, and memory does not grow
    with N beyond what is returned.

    Args:
        embedding: [B, D, h, w]. text: [N, D].
    """
    length = embedding.norm(dim=1, keepdim=True)

    def part(embedding: Tensor, length: Tensor, text: Tensor) -> dict[str, Tensor]:
        masks = torch.sigmoid(sim2mask(embedding, text, length))
        return mask_statistics(embedding, masks, text, wanted)

    count = max(1, int(embedding.shape[1] * _SHARE_AT_ONCE))
    if len(text) <= count:
        return part(embedding, length, text)
    parts = [
        checkpoint(part, embedding, length, some, use_reentrant=False, preserve_rng_state=False)
        for some in text.split(count)
    ]
    return {name: torch.cat([one[name] for one in parts], dim=1) for name in parts[0]}
