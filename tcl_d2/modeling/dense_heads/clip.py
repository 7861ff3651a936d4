"""CLIP's last block as it is (Radford et al., ICML 2021), the baseline of the dense heads."""

from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from .head import DENSE_HEAD_REGISTRY, DenseHead


class CLIPHead(DenseHead):
    """Attention softmax(q k' / sqrt(d)), residual and MLP."""

    keeps_block = True

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


@DENSE_HEAD_REGISTRY.register()
def clip(cfg: CfgNode) -> CLIPHead:
    return CLIPHead()
