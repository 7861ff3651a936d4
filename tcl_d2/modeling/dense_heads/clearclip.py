"""ClearCLIP's last block (Lan et al., Decomposing CLIP Representations for Dense Vision-Language Inference, ECCV 2024).

arXiv 2407.12442.
"""

from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from .head import DENSE_HEAD_REGISTRY, DenseHead


class ClearCLIPHead(DenseHead):
    """Attention softmax(q q' / sqrt(d)), without residual and MLP."""

    pad_to = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.scaled_dot_product_attention(query, query, value)


@DENSE_HEAD_REGISTRY.register()
def clearclip(cfg: CfgNode) -> ClearCLIPHead:
    return ClearCLIPHead()
