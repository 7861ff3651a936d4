"""ProxyCLIP's last block (Lan et al., Proxy Attention Improves CLIP for Open-Vocabulary Segmentation, ECCV 2024).

arXiv 2408.04883. The attention comes from another frozen vision model, of timm.
"""

from collections.abc import Callable, Sequence

import timm
import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...utils.tensors import read_tensors
from ..clip import FrozenCLIP, project_values, tokens_to_map
from .head import DENSE_HEAD_REGISTRY, DenseHead

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class ProxyCLIPHead(DenseHead):
    """Attention of the patches of a vision model, for CLIP's values enlarged to that model's grid.

    With unit features g of the vision model and s, the mean of all g_i . g_j of the batch: softmax over j of
    gamma * (g_i . g_j - beta * s), without what is negative. No residual, no MLP, no class token.

    The release folds CLIP's values with rows and columns swapped, which is right for square crops alone; here they
    are right for all.
    """

    pad_to = 56

    def __init__(
        self,
        vision: nn.Module,
        beta: float = 1.2,
        gamma: float = 3.0,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
    ):
        """Freeze the vision model.

        Args:
            vision: a timm VisionTransformer that returns all its tokens.
            beta: pairs less similar than beta times the mean are left out.
            gamma: scale of the similarities, more than 0; ValueError for others.
            pixel_mean: of the images that come in, RGB in 0..255.
            pixel_std: see pixel_mean.
        """
        super().__init__()
        if gamma <= 0:
            raise ValueError(f"MODEL.DENSE_CLIP.PROXY.GAMMA must be more than 0, not {gamma}.")
        # In a tuple it is no submodule: its weights come by its name, and checkpoints of the model do not need them
        self._vision = (vision.requires_grad_(False).eval(),)
        self.beta = beta
        self.gamma = gamma

        # The vision model sees images in ImageNet's normalization: (x * std + mean - imagenet_mean) / imagenet_std
        mean, std, imagenet_mean, imagenet_std = (
            torch.tensor(values).view(3, 1, 1) for values in (pixel_mean, pixel_std, IMAGENET_MEAN, IMAGENET_STD)
        )
        self.register_buffer("scale", std / imagenet_std, persistent=False)
        self.register_buffer("shift", (mean - imagenet_mean) / imagenet_std, persistent=False)

    @property
    def vision(self) -> nn.Module:
        return self._vision[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> "ProxyCLIPHead":  # to a device or a dtype
        self.vision._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, clip: FrozenCLIP, tokens: Tensor, images: Tensor) -> Tensor:
        return self.gather(clip, tokens, clip.grid(images), self.vision_features(images))

    def vision_features(self, images: Tensor) -> Tensor:
        """Compute the vision model's features of its patches [B, C', h', w'], after its final norm."""
        patch_height, patch_width = self.vision.patch_embed.patch_size
        grid = images.shape[-2] // patch_height, images.shape[-1] // patch_width
        images = images[..., : grid[0] * patch_height, : grid[1] * patch_width]  # a rest is not seen

        # The position embeddings are resized by the release's rule rather than by timm's
        position = self.position.resize(self.vision.pos_embed[0], tuple(self.vision.patch_embed.grid_size), grid)
        tokens = functional_call(self.vision, {"pos_embed": position[None]}, (images * self.scale + self.shift,))
        return tokens_to_map(tokens, grid)

    def gather(self, clip: FrozenCLIP, tokens: Tensor, grid: tuple[int, int], vision: Tensor) -> Tensor:
        """Compute features on the vision model's grid.

        Args:
            clip: the frozen CLIP.
            tokens: before its last block, [B, 1 + h*w, C].
            grid: (h, w).
            vision: the vision model's features [B, C', h', w'].

        Returns:
            features [B, D, h', w'].
        """
        block = clip.blocks[-1]
        values = tokens_to_map(project_values(block, tokens), grid)
        values = F.interpolate(values, size=vision.shape[-2:], mode="bilinear", align_corners=False)
        attended = self.attention(vision) @ values.flatten(2).transpose(1, 2)
        return clip.project(block.attn.out_proj(attended), tuple(vision.shape[-2:]))

    def attention(self, vision: Tensor) -> Tensor:
        """Compute the attention [B, h'*w', h'*w'] of the patches of features [B, C', h', w']."""
        with torch.autocast(vision.device.type, enabled=False):  # similarities close to the threshold flip
            unit = F.normalize(vision.float().flatten(2), dim=1)
            similarity = unit.transpose(1, 2) @ unit
            logits = self.gamma * (similarity - self.beta * similarity.mean())

            # A patch sees itself at least: in a flat image all would be left out
            seen = (logits >= 0) | torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
            return logits.masked_fill(~seen, -torch.inf).softmax(-1)


@DENSE_HEAD_REGISTRY.register()
def proxyclip(cfg: CfgNode) -> ProxyCLIPHead:
    proxy = cfg.MODEL.DENSE_CLIP.PROXY
    vision = build_vision_model(proxy.NAME, proxy.PRETRAINED)
    return ProxyCLIPHead(vision, proxy.BETA, proxy.GAMMA, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)


def build_vision_model(name: str, pretrained: str) -> VisionTransformer:
    """Build a vision model that returns all its tokens.

    Args:
        name: of a VisionTransformer in timm, such as "vit_base_patch8_224.dino".
        pretrained: "timm" for the weights that timm names, a file of them, or "" for random ones.

    Raises:
        ValueError: timm has no such model, it is no VisionTransformer, or the file does not fit.
        OSError: the weights cannot be read.
    """
    # Build it
    if not timm.is_model(name):
        raise ValueError(f"MODEL.DENSE_CLIP.PROXY.NAME is '{name}', which timm {timm.__version__} does not have.")
    try:
        vision = timm.create_model(name, pretrained=pretrained == "timm", num_classes=0, global_pool="")
    except OSError as error:
        raise OSError(
            f"ProxyCLIP's vision model: the weights of '{name}' are neither in the local cache nor could they be "
            f"downloaded ({type(error).__name__}). Run once where the network reaches the hub and keep its cache "
            "(HF_HOME), or give a file of them: MODEL.DENSE_CLIP.PROXY.PRETRAINED /path/to/weights.safetensors"
        ) from None
    if not isinstance(vision, VisionTransformer) or vision.pos_embed is None:
        raise ValueError(
            f"MODEL.DENSE_CLIP.PROXY.NAME is '{name}', a {type(vision).__name__}; expected a VisionTransformer of timm "
            "with position embeddings, which gives a token for each patch, such as vit_base_patch8_224.dino."
        )

    # Any window is taken, with position embeddings as they are given
    vision.dynamic_img_size = vision.patch_embed.strict_img_size = False
    vision.patch_embed.flatten = True

    # Read its weights
    if pretrained not in ("", "timm"):
        missing, unexpected = vision.load_state_dict(read_tensors(PathManager.get_local_path(pretrained)), strict=False)
        if missing or unexpected:
            raise ValueError(
                f"{pretrained} does not hold the weights of '{name}': {len(missing)} missing, {len(unexpected)} "
                f"unexpected, such as {(missing + unexpected)[0]}."
            )
    return vision
