"""SCLIP's last block (Wang, Mei & Yuille, Rethinking Self-Attention for Dense Vision-Language Inference, ECCV 2024).

arXiv 2312.01597.
"""

from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from .head import DENSE_HEAD_REGISTRY, DenseHead


class SCLIPHead(DenseHead):
    """Attention softmax(q q' / sqrt(d)) + softmax(k k' / sqrt(d)), a sum and no mean; residual and MLP stay."""

    keeps_block = True

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        by_query = F.scaled_dot_product_attention(query, query, value)
        return by_query + F.scaled_dot_product_attention(key, key, value)


@DENSE_HEAD_REGISTRY.register()
def sclip(cfg: CfgNode) -> SCLIPHead:
    return SCLIPHead()
