"""The grounder: what TCL trains. It turns CLIP's tokens into pixel embeddings, and those with a text into a mask."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.ranges import check_values
from ...utils.errors import expect
from ..encoders.clip import FrozenCLIP, run_block, value_path
from ..encoders.linear import linear
from ..functional import normalize, tokens_to_map
from ..scalars import hold_scalars
from . import winograd


class GatedConv(nn.Module):
    """x + g * conv3x3(GELU(LayerNorm over channels of x)), g = tanh(gate), which is 0 at the start."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Parameter(torch.zeros(()))
        hold_scalars(self)

    def activate(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        """Apply to x [B, C, H, W], or to x enlarged to double size, which norm and GELU commute with."""
        update = self.convolve(self.activate(x), double)
        return torch.addcmul(enlarge(x) if double else x, torch.tanh(self.gate), update)

    def convolve(self, x: Tensor, double: bool) -> Tensor:
        """Convolve x [B, C, H, W], or x enlarged to double size, by what is fastest."""
        filtering = winograd.FILTERING_DOUBLED if double else winograd.FILTERING
        if self.conv.bias is not None and winograd.is_faster(x, filtering):
            return winograd.convolve(x, self.conv.weight, self.conv.bias, filtering)
        return conv_of_doubled(x, self.conv) if double else self.conv(x)


def enlarge(x: Tensor) -> Tensor:
    """Double the size of [B, C, H, W] by nearest."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def conv_of_doubled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Compute conv(enlarge(x)) for a 3 x 3 convolution with padding 1, with 4 taps a pixel in place of 9.

    Doubled pixels come in equal pairs, so that three taps in a row meet two different ones: for the first of a pair its
    left neighbor and itself (twice), for the second itself (twice) and its right neighbor. Each of the four phases of
    the result is thus a 2 x 2 convolution of x with sums of taps. [B, C, h, w] -> [B, C', 2h, 2w].
    """

    def sum_taps(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, second, third = weight.unbind(dim)
        return torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)

    height, width = x.shape[-2:]
    framed = F.pad(x, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    weight = conv.weight.permute(0, 2, 3, 1).contiguous()  # channels last, in which taps lie together
    result: Tensor | Any = None
    for i, rows in enumerate(sum_taps(weight, 1)):
        for j, taps in enumerate(sum_taps(rows, 2)):
            # Convolve the low-resolution map
            part = framed[:, :, i : i + height + 1, j : j + width + 1]
            phase = F.conv2d(part, taps.permute(0, 3, 1, 2), conv.bias)

            # Put the phase into every second row and column; autocast decides the result's dtype
            if result is None:
                size = (x.shape[0], conv.out_channels, 2 * height, 2 * width)
                result = torch.empty(size, dtype=phase.dtype, device=x.device, memory_format=torch.channels_last)
            result[:, :, i::2, j::2] = phase

    return result


class DecoderBlock(nn.Module):
    """Doubles the resolution: [B, C, h, w] -> [B, C, 2h, 2w]; plain upsampling while the gates are 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = GatedConv(channels)
        self.conv2 = GatedConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, double=True))


class ImageProjection(nn.Module):
    """CLIP's final LayerNorm and projection, for every pixel: [B, C, h, w] -> [B, D, h, w]."""

    def __init__(self, norm: nn.LayerNorm, weight: Tensor):
        super().__init__()
        self.norm = copy.deepcopy(norm)
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.norm(x.permute(0, 2, 3, 1)), self.weight.T).permute(0, 3, 1, 2)


class Sim2Mask(nn.Module):
    """Masks from similarities of pixels and texts, with a learnable scale w and bias b."""

    def __init__(self, scale: float = 10.0, bias: float = -2.5, tau: float = 1.0):
        """Initialize w and b.

        Args:
            scale: initial value of w.
            bias: initial value of b.
            tau: temperature of the hard masks, more than 0; ValueError for others.
        """
        super().__init__()
        check_values("MODEL.TCL", GUMBEL_TAU=tau)
        self.w = nn.Parameter(torch.tensor(float(scale)))
        self.b = nn.Parameter(torch.tensor(float(bias)))
        hold_scalars(self)
        self.tau = tau

    def forward(self, embedding: Tensor, text: Tensor, length: Tensor | None = None) -> Tensor:
        """Compute the mask logits of every image and every text.

        Args:
            embedding: pixel embeddings [B, D, h, w], of any lengths.
            text: text features [N, D], of any lengths.
            length: the pixel embeddings' lengths [B, 1, h, w], where they are known.

        Returns:
            fp32 [B, N, h, w].
        """
        return self._logits("bdhw,nd->bnhw", embedding, text, length)

    def positive_logits(self, embedding: Tensor, text: Tensor) -> Tensor:
        """Compute the mask logits of image i and text i alone: text [B, D] -> fp32 [B, 1, h, w]."""
        return self._logits("bdhw,bnd->bnhw", embedding, text[:, None])

    def _logits(self, product: str, embedding: Tensor, text: Tensor, length: Tensor | None = None) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):  # w = 10 makes much of small errors
            embedding = embedding.float()
            length = embedding.norm(dim=1, keepdim=True) if length is None else length
            # Divided after the product, in which a pixel has fewer values than the embedding's D.
            similarity = torch.einsum(product, embedding, normalize(text, -1)) / length.clamp(min=1e-6)
            return self.w * similarity + self.b

    def noise(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draw uniform numbers in (0, 1), for `hard`."""
        return torch.rand(shape, dtype=torch.float32, device=device).clamp(
            1e-6, 1 - 1e-6
        )  # keeps both logarithms finite

    def hard(self, logits: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Draw 0/1 masks with probability sigmoid(logits) (Gumbel-sigmoid), with a straight-through gradient.

        Args:
            logits: of any shape, which is the masks' too.
            uniform: the noise, in (0, 1), of the shape of `logits`, to repeat a step exactly; None draws it.
        """
        if uniform is None:
            uniform = self.noise(logits.shape, logits.device)
        elif uniform.shape != logits.shape:
            raise ValueError(f"uniform must have the masks' shape {tuple(logits.shape)}, not {tuple(uniform.shape)}")
        soft = torch.sigmoid((logits + uniform.log() - (-uniform).log1p()) / self.tau)
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())  # the bracket is 0 and carries the gradient


class Grounder(nn.Module):
    """Trainable copy of CLIP's last blocks, gated decoder and projection: CLIP's tokens -> pixel embeddings."""

    def __init__(self, clip: FrozenCLIP, freeze: int, decoder_blocks: int = 2):
        """Copy what is trained from a CLIP.

        Args:
            clip: the frozen CLIP.
            freeze: blocks of CLIP's image encoder that are shared; the others are copied (at least one).
            decoder_blocks: number of doublings of the resolution.
        """
        super().__init__()
        check_values("MODEL.TCL", DECODER_BLOCKS=decoder_blocks)
        last = len(clip.blocks) - 1
        expect(0 <= freeze <= last, "MODEL.TCL.FREEZE", freeze, f"0 to {last} for this CLIP")

        channels = clip.visual.conv1.out_channels
        self.blocks = copy.deepcopy(clip.blocks[freeze:])
        self.decoder = nn.Sequential(*[DecoderBlock(channels) for _ in range(decoder_blocks)])
        self.projection = ImageProjection(clip.visual.ln_post, clip.visual.proj)
        self.requires_grad_(True)
        self.scale = 2**decoder_blocks

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Turn tokens [B, 1 + h*w, C] after block `freeze` into pixel embeddings [B, D, S*h, S*w], S = `scale`."""
        for block in self.blocks[:-1]:
            tokens = run_block(block, tokens)
        x = tokens_to_map(value_path(self.blocks[-1], tokens), grid)
        return self.projection(self.decoder(x))
