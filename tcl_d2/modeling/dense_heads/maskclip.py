"""MaskCLIP's last block (Zhou, Loy & Dai, Extract Free Dense Labels from CLIP, ECCV 2022, arXiv 2112.01071)."""

from detectron2.config import CfgNode
from torch import Tensor

from ..clip import FrozenCLIP, PositionRule, value_path
from .head import DENSE_HEAD_REGISTRY, DenseHead


class MaskCLIPHead(DenseHead):
    """Each token attends to itself alone: its value takes the attention's place; residual and MLP stay, as released."""

    position = PositionRule(keeps_equal_count=True)
    pad_to = None

    def forward(self, clip: FrozenCLIP, tokens: Tensor, images: Tensor) -> Tensor:
        return clip.project(value_path(clip.blocks[-1], tokens), clip.grid(images))


@DENSE_HEAD_REGISTRY.register()
def maskclip(cfg: CfgNode) -> MaskCLIPHead:
    return MaskCLIPHead()
