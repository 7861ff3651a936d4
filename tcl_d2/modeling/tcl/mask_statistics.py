"""Statistics of the soft masks of all pairs of B images and N texts, without holding B x N masks."""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..functional import normalize
from .grounder import Sim2Mask

# Texts whose masks are held at once, as a share of the embedding's D: a map of them takes that share of the memory of
# the pixel embeddings, whatever the batch and the image size, and some ten maps are needed.
_SHARE_AT_ONCE = 1 / 8

MASK_STATISTICS = ("area", "mask_tv", "similarity")


def total_variation(x: Tensor) -> Tensor:
    """Compute the mean absolute difference of horizontal plus of vertical neighbors of maps [..., h, w] -> [...]."""
    zero = x.new_zeros(x.shape[:-2])  # a map one pixel wide has no such neighbors
    rows = _mean_size(x.diff(dim=-2)) if x.shape[-2] > 1 else zero
    columns = _mean_size(x.diff(dim=-1)) if x.shape[-1] > 1 else zero
    return rows + columns


def _mean_size(x: Tensor) -> Tensor:
    """Compute x.abs().mean((-2, -1)) without a copy of x."""
    return torch.linalg.vector_norm(x, 1, dim=(-2, -1)) / x.shape[-2:].numel()


def masked_mean(embedding: Tensor, masks: Tensor) -> Tensor:
    """Average pixel embeddings [B, D, h, w] under each soft mask [B, N, h, w] -> [B, N, D]."""
    summed = torch.einsum("bdhw,bnhw->bnd", embedding, masks)
    return summed / (masks.sum((2, 3))[..., None] + 1e-6)


def compute_mask_statistics(
    embedding: Tensor, masks: Tensor, text: Tensor, wanted: Collection[str]
) -> dict[str, Tensor]:
    """Compute the wanted statistics of given soft masks, by name, [B, N] each; Grounding says what they are.

    Args:
        embedding: pixel embeddings [B, D, h, w].
        masks: soft masks [B, N, h, w].
        text: text features [N, D].
        wanted: some of MASK_STATISTICS.
    """
    statistics = {}
    if "area" in wanted:
        statistics["area"] = masks.mean((2, 3))
    if "mask_tv" in wanted:
        statistics["mask_tv"] = total_variation(masks)
    if "similarity" in wanted:
        grounded = normalize(masked_mean(embedding, masks), 2)
        statistics["similarity"] = torch.einsum("bnd,nd->bn", grounded, normalize(text, 1))
    return statistics


def pair_statistics(embedding: Tensor, text: Tensor, sim2mask: Sim2Mask, wanted: Collection[str]) -> dict[str, Tensor]:
    """Compute the statistics of the soft masks that `sim2mask` makes of every image and every text.

    Masks are made for some texts at a time, and recomputed for the gradient: exact, and memory does not grow with N
    beyond what is returned.

    Args:
        embedding: pixel embeddings [B, D, h, w].
        text: text features [N, D].
        wanted: names, of which those in MASK_STATISTICS are computed; without any, no mask is made.
    """
    wanted = [name for name in MASK_STATISTICS if name in wanted]
    if not wanted:
        return {}
    length = embedding.norm(dim=1, keepdim=True)

    def statistics_of_part(embedding: Tensor, length: Tensor, text: Tensor) -> dict[str, Tensor]:
        masks = torch.sigmoid(sim2mask(embedding, text, length))
        return compute_mask_statistics(embedding, masks, text, wanted)

    # A few texts need no parts
    texts_at_once = max(1, int(embedding.shape[1] * _SHARE_AT_ONCE))
    if len(text) <= texts_at_once:
        return statistics_of_part(embedding, length, text)

    parts = [
        checkpoint(statistics_of_part, embedding, length, chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in text.split(texts_at_once)
    ]
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in wanted}
