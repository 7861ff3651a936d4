"""PAMR that can be exported: neighbors are gathered, where PAMR multiplies with a sparse matrix."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..modeling.encoders.resize_matrices import linear_matrix
from ..modeling.refiners.pamr import PAMR, neighbor_indices


class ExportablePAMR(PAMR):
    """PAMR for graphs, which have neither sparse matrices nor loops over a batch; same results, more memory."""

    def bind(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        return partial(self, images)

    def forward(self, images: Tensor, scores: Tensor) -> Tensor:
        height, width = scores.shape[-2:]
        rows, columns = (linear_matrix(*sides, images.device) for sides in zip(images.shape[-2:], (height, width)))
        images = (rows @ images.float() @ columns.T).flatten(2)
        neighbors = neighbor_indices(height, width, self.dilations, images.device)
        affinity = self.affinity(images, neighbors).transpose(1, 2)[:, :, None]  # [B, H*W, 1, 48]

        values = scores.float().flatten(2).transpose(1, 2)
        for _ in range(self.iterations):
            values = (affinity @ values[:, neighbors.T])[:, :, 0]
        return values.transpose(1, 2).unflatten(2, (height, width))
