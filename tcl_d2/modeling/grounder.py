"""The grounder: what TCL trains. It turns CLIP's tokens into pixel embeddings, and those with a text into a mask."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip import FrozenCLIP, fold, value_path


def normalize(x: Tensor, dim: int) -> Tensor:
    """L2-normalises along `dim`, in fp32, with the official release's eps."""
    return F.normalize(x.float(), dim=dim, eps=1e-6)


class GatedConv(nn.Module):
    """g * conv3x3(GELU(LayerNorm over channels)), g = tanh(gate), which is 0 at the start: [B, C, H, W] -> same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Parameter(torch.zeros(()))

    def activate(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    def forward(self, x: Tensor, scale: int = 1) -> Tensor:
        """Applied to x enlarged `scale` times by nearest; norm and GELU, which commute with that, run before it."""
        x = self.activate(x)
        return torch.tanh(self.gate) * self.conv(enlarge(x, scale))


def enlarge(x: Tensor, scale: int) -> Tensor:
    return x if scale == 1 else F.interpolate(x, scale_factor=float(scale), mode="nearest")


class DecoderBlock(nn.Module):
    """Doubles the resolution: [B, C, h, w] -> [B, C, 2h, 2w]; plain upsampling while the gates are 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = GatedConv(channels)
        self.conv2 = GatedConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = enlarge(x, 2) + self.conv1(x, scale=2)
        return x + self.conv2(x)


class ImageProjection(nn.Module):
    """CLIP's final LayerNorm and projection, for every pixel: [B, C, h, w] -> [B, D, h, w]."""

    def __init__(self, norm: nn.LayerNorm, weight: Tensor):
        super().__init__()
        self.norm = copy.deepcopy(norm)
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x.permute(0, 2, 3, 1)) @ self.weight).permute(0, 3, 1, 2)


class Sim2Mask(nn.Module):
    """Masks from similarities of pixels and texts, with a learnable scale w and bias b."""

    def __init__(self, scale: float = 10.0, bias: float = -2.5, tau: float = 1.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(float(scale)))
        self.b = nn.Parameter(torch.tensor(float(bias)))
        self.tau = tau

    def forward(self, embedding: Tensor, text: Tensor) -> Tensor:
        """Pixel embeddings [B, D, h, w] and text embeddings [N, D], any lengths -> logits [B, N, h, w]."""
        similarity = torch.einsum("bdhw,nd->bnhw", normalize(embedding, 1), normalize(text, 1))
        return self.w * similarity + self.b

    def hard(self, logits: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Gumbel-sigmoid: 0/1 masks drawn with probability sigmoid(logits), straight-through gradient; same shape.

        Args:
            uniform: the noise, in (0, 1), of the shape of `logits`, to repeat a step exactly; None draws it.
        """
        if uniform is None:
            uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)  # keeps both logarithms finite
        elif uniform.shape != logits.shape:
            raise ValueError(f"uniform must have the masks' shape {tuple(logits.shape)}, not {tuple(uniform.shape)}")
        soft = torch.sigmoid((logits + uniform.log() - (-uniform).log1p()) / self.tau)
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())  # the bracket is 0 and carries the gradient


class Grounder(nn.Module):
    """Trainable copy of CLIP's last blocks, gated decoder and projection: trunk tokens -> pixel embeddings."""

    def __init__(self, clip: FrozenCLIP, freeze: int, decoder_blocks: int = 2):
        """
        Args:
            freeze: blocks of CLIP's image encoder that are shared; the others are copied (at least one).
            decoder_blocks: number of doublings of the resolution.
        """
        super().__init__()
        if not 0 <= freeze < len(clip.blocks):
            raise ValueError(f"MODEL.TCL.FREEZE must be in 0..{len(clip.blocks) - 1} for this CLIP, not {freeze}.")
        channels = clip.visual.conv1.out_channels
        self.blocks = copy.deepcopy(clip.blocks[freeze:])
        self.decoder = nn.Sequential(*[DecoderBlock(channels) for _ in range(decoder_blocks)])
        self.projection = ImageProjection(clip.visual.ln_post, clip.visual.proj)
        self.requires_grad_(True)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, 1 + h*w, C] after block `freeze` -> pixel embeddings [B, D, S*h, S*w], S = 2**decoder_blocks."""
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        x = fold(value_path(self.blocks[-1], tokens), grid)
        return self.projection(self.decoder(x))
