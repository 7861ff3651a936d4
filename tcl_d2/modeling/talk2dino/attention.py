"""Where the class token looks, head by head: what Talk2DINO learns from, and cleans the background by."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..encoders.last_block import LastBlock
from ..functional import normalize


class Extremes(NamedTuple):
    """Least and largest values over all words and patches of each window, fp32 [B, 1, 1] each."""

    least_map: Tensor
    largest_map: Tensor
    least_score: Tensor
    largest_score: Tensor

    def merge(self, other: "Extremes") -> "Extremes":
        """Return those over the words of both."""
        least = [torch.minimum(first, second) for first, second in zip(self[::2], other[::2])]
        largest = [torch.maximum(first, second) for first, second in zip(self[1::2], other[1::2])]
        return Extremes(least[0], largest[0], least[1], largest[1])


class ClassAttention(NamedTuple):
    """The attention of the class token in a vision model's last block, fp32.

    Attributes:
        logits: of each patch, before the softmax, [B, heads, N].
        patches: features after the final norm, [B, N, C].
    """

    logits: Tensor
    patches: Tensor

    @classmethod
    def read(cls, block: LastBlock, patches: Tensor) -> "ClassAttention":
        """Compute it from a last block whose first token is the class's, and the patches' features [B, N, C].

        Queries and keys are those before RoPE, as the release takes them.
        """
        with torch.autocast(patches.device.type, enabled=False):
            query, key, _ = block._replace(tokens=block.tokens.float()).project_heads()
            keys = key[:, :, -patches.shape[1] :]
            logits = (query[:, :, :1] * query.shape[-1] ** -0.5) @ keys.transpose(2, 3)
            return cls(logits[:, :, 0], patches.float())

    def pool(self) -> Tensor:
        """Compute an embedding of the image by each head, [B, heads, C], not normalized."""
        return self.logits.softmax(2) @ self.patches / self.patches.shape[1]

    def maps(self, text: Tensor) -> Tensor:
        """Compute where the heads that fit each word look: text features [K, C] -> [B, K, N], of sum 1 over patches."""
        heads = normalize(self.logits @ self.patches, 2)  # by the logits as they are
        weights = (heads @ normalize(text, 1).T).softmax(1)
        return (weights.transpose(1, 2) @ self.logits).softmax(2)

    def clean(self, scores: Tensor, text: Tensor, extremes: Extremes, weight: float) -> Tensor:
        """Mix scores [B, K, N] of words [K, C] with their maps, which are brought to the scores' range."""
        maps, (least, largest, lowest, highest) = self.maps(text), extremes
        maps = (maps - least) / torch.maximum(largest, largest - least)
        return (scores + weight * (maps * (highest - lowest) + lowest)) / (1 + weight)

    def extremes(self, scores: Tensor, text: Tensor) -> Extremes:
        """Find the extremes over the words [K, C] with these scores [B, K, N]."""
        maps = self.maps(text)
        return Extremes(*(extreme(x, (1, 2), True) for x in (maps, scores) for extreme in (torch.amin, torch.amax)))
