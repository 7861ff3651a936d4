"""What every segmentor stands on: encoders of images and texts into one space, such as CLIP's, frozen or trained."""

import torch
from torch import Tensor, nn


class DualEncoder(nn.Module):
    """A model of images and texts.

    A subclass says how texts are encoded. How images are, is between it and the segmentors that are made for it.

    Attributes:
        model: the model itself.
        embed_dim: size D of its features.
        patch_size: side of the patches into which its images are cut, in pixels.
    """

    embed_dim: int
    patch_size: int

    def __init__(self, model: nn.Module):
        """Hold a model."""
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens int [N, context] -> text features [N, D], not normalized."""
        raise NotImplementedError

    def text_weights(self) -> dict[str, Tensor]:
        """Return all weights that `encode_text` depends on, by name."""
        raise NotImplementedError


class FrozenDualEncoder(DualEncoder):
    """A dual encoder that is frozen and always in eval mode. Gradient may flow through it, never into it."""

    def __init__(self, model: nn.Module):
        """Freeze a model."""
        super().__init__(model.requires_grad_(False).eval())

    def train(self, mode: bool = True) -> "FrozenDualEncoder":
        return super().train(False)
