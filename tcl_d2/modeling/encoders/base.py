"""The base of CLIP and GroupViT: encoders of images and texts into one space, frozen or trained."""

from typing import Any

import torch
from torch import Tensor, nn


class DualEncoder(nn.Module):
    """A model of images and texts.

    A subclass says how texts are encoded. How images are encoded is up to it and its segmentors.

    Attributes:
        embed_dim: size D of its features.
        patch_size: side of an image's patches, in pixels.
        model: another library's module, whose parts its subclass knows.
    """

    embed_dim: int
    patch_size: int
    model: Any

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens int [N, context] -> text features [N, D], not normalized."""
        raise NotImplementedError

    def text_weights(self) -> dict[str, Tensor]:
        """Return the weights that `encode_text` depends on, by name."""
        raise NotImplementedError


class FrozenDualEncoder(DualEncoder):
    """A dual encoder that is frozen and always in eval mode. Gradient may flow through it, never into it."""

    def __init__(self, model: nn.Module):
        super().__init__(model.requires_grad_(False).eval())

    def train(self, mode: bool = True) -> "FrozenDualEncoder":
        return super().train(False)
