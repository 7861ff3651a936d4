"""ProxyCLIP's last block (Lan et al., Proxy Attention Improves CLIP for Open-Vocabulary Segmentation, ECCV 2024).

arXiv 2408.04883. The attention comes from another frozen vision model, of timm.
"""

import math

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.ranges import check_values
from ..encoders.clip import FrozenCLIP, project_values
from ..encoders.clip_loading import image_tower
from ..encoders.vision import VisionEncoder, build_vision_model
from ..functional import map_size, self_similarity, tokens_to_map
from .heads import DENSE_HEAD_REGISTRY, DenseHead


class ProxyCLIPHead(DenseHead):
    """Attention of the patches of a vision model, for CLIP's values enlarged to that model's grid.

    With unit features g of the vision model and s, the mean of all g_i . g_j of a crop: softmax over j of
    gamma * (g_i . g_j - beta * s), without what is negative. No residual, no MLP, no class token.

    The release computes one crop at a time; here a crop has a mean of its own too where several are computed together.
    It folds CLIP's values with rows and columns swapped, which is right for square crops alone; here they are right for
    all.
    """

    keeps_grid = False
    pad_to: int = 56  # as the release, for patches of 8 and 14 pixels; where others are no part of it, to whole patches

    def __init__(self, vision: nn.Module, beta: float = 1.2, gamma: float = 3.0):
        """Set the vision model, and how its similarities become attention.

        Args:
            vision: normalized images [B, 3, H, W] -> features [B, C', h', w'], such as a VisionEncoder.
            beta: pairs less similar than beta times the mean are left out.
            gamma: scale of the similarities.
        """
        super().__init__()
        check_values("MODEL.DENSE_CLIP.PROXY", GAMMA=gamma)
        self.vision = vision
        self.beta = beta
        self.gamma = gamma

    def forward(self, clip: FrozenCLIP, tokens: Tensor, images: Tensor) -> Tensor:
        return self.gather(clip, tokens, clip.grid(images), self.vision(images))

    def gather(self, clip: FrozenCLIP, tokens: Tensor, grid: tuple[int, int], vision: Tensor) -> Tensor:
        """Compute features [B, D, h', w'] on the grid of the vision model's features [B, C', h', w'].

        Args:
            tokens: before CLIP's last block, [B, 1 + h*w, C], of the grid (h, w).
        """
        block = clip.blocks[-1]
        values = tokens_to_map(project_values(block, tokens), grid)
        values = F.interpolate(values, size=vision.shape[-2:], mode="bilinear", align_corners=False)
        attended = self.attention(vision) @ values.flatten(2).transpose(1, 2)
        return clip.project(block.attn.out_proj(attended), map_size(vision))

    def attention(self, vision: Tensor) -> Tensor:
        """Compute the attention [B, h'*w', h'*w'] of the patches of features [B, C', h', w']."""
        with torch.autocast(vision.device.type, enabled=False):  # similarities close to the threshold flip
            similarity = self_similarity(vision.float())
            logits = self.gamma * (similarity - self.beta * similarity.mean((1, 2), keepdim=True))

            # A patch sees itself at least: in a flat image all would be left out
            seen = (logits >= 0) | torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
            return logits.masked_fill(~seen, -torch.inf).softmax(-1)


@DENSE_HEAD_REGISTRY.register()
def proxyclip(cfg: CfgNode) -> ProxyCLIPHead:
    proxy = cfg.MODEL.DENSE_CLIP.PROXY
    model = build_vision_model("MODEL.DENSE_CLIP.PROXY", proxy.NAME, proxy.PRETRAINED)
    # Position embeddings are resized by the release's rule, the head's
    vision = VisionEncoder(model, ProxyCLIPHead.position, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    head = ProxyCLIPHead(vision, proxy.BETA, proxy.GAMMA)
    if head.pad_to % vision.patch_size:
        head.pad_to = math.lcm(vision.patch_size, image_tower(cfg.MODEL.CLIP.NAME).patch_size)
    return head
