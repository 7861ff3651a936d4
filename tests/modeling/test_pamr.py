"""PAMR against a plain loop."""

import pytest
import torch

from tcl_d2.modeling import PAMR


def plain_pamr(image, masks, iterations, dilations):
    """PAMR as the paper's formula, one pixel and one neighbor at a time."""
    # The pixels around each, borders replicated, and their weights
    _, height, width = image.shape
    clamp = lambda value, top: min(max(value, 0), top - 1)  # noqa: E731
    offsets = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    weights = {}
    for y in range(height):
        for x in range(width):
            window = [
                (clamp(y + d * dy, height), clamp(x + d * dx, width), dy or dx) for d in dilations for dy, dx in offsets
            ]
            values = torch.stack([image[:, v, u] for v, u, _ in window])
            spread = values.std(0)
            around = [(v, u) for v, u, is_neighbor in window if is_neighbor]
            logits = [(-(image[:, y, x] - image[:, v, u]).abs() / (1e-8 + 0.1 * spread)).mean() for v, u in around]
            weights[y, x] = around, torch.stack(logits).softmax(0)

    # Average
    for _ in range(iterations):
        new = torch.zeros_like(masks)
        for (y, x), (around, weight) in weights.items():
            new[:, y, x] = sum(w * masks[:, v, u] for w, (v, u) in zip(weight, around))
        masks = new
    return masks


def test_pamr_equals_a_plain_loop():
    torch.manual_seed(0)
    image, masks = torch.randn(2, 3, 7, 9), torch.rand(2, 4, 7, 9)
    refined = PAMR(iterations=3, dilations=(1, 2, 5))(image, masks)
    for image_of_batch, mask, result in zip(image, masks, refined):
        torch.testing.assert_close(result, plain_pamr(image_of_batch, mask, 3, (1, 2, 5)), rtol=0, atol=1e-5)


def test_pamr_refuses_no_dilations():
    with pytest.raises(ValueError, match="at least 1"):
        PAMR(dilations=())
