"""Label propagation: scores that spread over the edges of a graph, as LPOSS has it."""

from collections.abc import Callable

import torch
from torch import Tensor

_TOLERANCE = 1e-6  # of a word's residual, as a share of its scores: then it is solved
_MOST_STEPS = 1000  # never needed: conjugate gradients take some 50 at alpha 0.95


def propagate(multiply: Callable[[Tensor], Tensor], scores: Tensor, alpha: float, steps: int) -> Tensor:
    """Solve (I - alpha S) z = y for the scores y of each word, by conjugate gradients that begin at 0.

    Each word has step lengths of its own, so that the others do not matter. The result is (1 - alpha) z, whose length
    is at most that of y.

    Args:
        multiply: v -> S v for the symmetric matrix S of the graph, float64 [N, N], with eigenvalues in -1..1.
        scores: y, [N, K].
        alpha: how far scores spread, 0 <= alpha < 1.
        steps: after so many steps the result is taken as it is; 0: once each word is solved.

    Returns:
        float64 [N, K].
    """
    residual = scores.double()
    direction, solution = residual, torch.zeros_like(residual)
    squared = residual.square().sum(0)
    solved = _TOLERANCE**2 * squared
    is_left = squared > solved

    for _ in range(steps or _MOST_STEPS):
        image = torch.sub(direction, multiply(direction), alpha=alpha)
        length = torch.where(is_left, squared / (direction * image).sum(0), 0.0)
        solution = torch.addcmul(solution, length, direction)
        residual = torch.addcmul(residual, length, image, value=-1.0)

        before, squared = squared, residual.square().sum(0)
        is_left = squared > solved
        if not is_left.any():
            break
        direction = torch.addcmul(residual, torch.where(is_left, squared / before, 0.0), direction)
    return solution.mul_(1 - alpha)


def inverse_roots(row_sums: Tensor) -> Tensor:
    """Return d^(-1/2) of the row sums d of a graph, float64; 1 for a node without edges."""
    return torch.where(row_sums > 0, row_sums, 1.0).rsqrt()
