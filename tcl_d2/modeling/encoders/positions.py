"""Position embeddings of a ViT, resized for grids of other sizes."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...utils.tensors import LastValue, weights_version
from ..resize_matrices import antialias_matrix, cubic_matrix


class PositionRule(NamedTuple):
    """How position embeddings, learned on a grid of n x n patches, are read for a grid of h x w.

    Attributes:
        offset: sides are resized by the factors (h + offset) / n and (w + offset) / n.
        keeps_equal_count: whether a grid of n * n patches of another shape (7 x 28 for 14 x 14) gets them as they are.
        antialias: "bicubic" or "bilinear" with antialias, without an offset; "" for bicubic without antialias.
    """

    offset: float = 0.0
    keeps_equal_count: bool = False
    antialias: str = ""

    def resize(self, position: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Resize position embeddings from the grid `size` to another.

        [p + n1*n2, C] -> [p + h*w, C]; the p first ones, such as the class token's, stay.
        """
        if torch.compiler.is_exporting():
            return self._resize_in_graph(position, size, grid)

        count = size[0] * size[1]
        if grid == size or (self.keeps_equal_count and grid[0] * grid[1] == count):
            return position

        first, patches = position[:-count], position[-count:].unflatten(0, size).permute(2, 0, 1)[None]
        scale = [(int(side) + self.offset) / old for side, old in zip(grid, size)]  # a trace has tensors
        where = {"scale_factor": scale} if self.offset else {"size": grid}
        how = {"mode": self.antialias or "bicubic", "antialias": bool(self.antialias)}
        patches = F.interpolate(patches, **where, **how, align_corners=False)
        return torch.cat([first, patches[0].permute(1, 2, 0).flatten(0, 1)])

    def _resize_in_graph(self, position: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Resize with the same operations for all grids: a graph has no branches."""
        count, (height, width) = size[0] * size[1], grid
        first, patches = position[:-count], position[-count:].unflatten(0, size)
        rows, columns = (self._matrix(old, side, position.device) for side, old in zip(grid, size))
        resized = torch.einsum("hi,wj,ijc->hwc", rows, columns, patches).flatten(0, 1)
        if not (self.offset or self.keeps_equal_count):  # at their own size, the matrices are ones
            return torch.cat([first, resized])

        # Keep them where the rule says so
        is_same = torch.scalar_tensor(height * width) == count
        if not self.keeps_equal_count:
            is_same &= torch.scalar_tensor(height) == size[0]
        indices = torch.arange(height * width, device=position.device).clamp(max=count - 1)
        return torch.cat([first, torch.where(is_same, position[-count:][indices], resized)])

    def _matrix(self, source: int, target: int, device: torch.device) -> Tensor:
        if self.antialias:
            return antialias_matrix(source, target, self.antialias, device)
        return cubic_matrix(source, target, (target + self.offset) / source, device)


RESIZED_TO_GRID = PositionRule()  # TCL's


class KeptPositions:
    """The last resized position embeddings of a frozen model, for the next images: resizing is slow on a GPU."""

    def __init__(self):
        self._last = LastValue()

    def __call__(self, rule: PositionRule, position: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Return rule.resize(position, size, grid)."""
        resize = partial(rule.resize, position, size, grid)
        if torch.compiler.is_compiling() or position.is_inference():
            return resize()
        return self._last((rule, grid, weights_version([position])), resize)
