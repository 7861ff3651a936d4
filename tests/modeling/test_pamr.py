"""PAMR against a plain loop."""

import pytest
import torch
from detectron2.modeling import build_model

from tcl_d2 import load_config
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


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.randn(2, 3, 21, 30, generator=generator), torch.rand(2, 4, 9, 13, generator=generator)
    images[1, :, :10] = 1.5  # flat, as sky may be
    return images, masks


SMALL = {"iterations": 3, "dilations": (1, 2, 5)}


def test_gradients_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    image, masks, weight = torch.randn(3, 5, 6), torch.rand(2, 5, 6), torch.randn(2, 5, 6)
    gradients = []
    for refine in (
        lambda image, masks: PAMR(**SMALL)(image[None], masks[None])[0],
        lambda image, masks: plain_pamr(image, masks, **SMALL),
    ):
        leaves = image.clone().requires_grad_(), masks.clone().requires_grad_()
        gradients.append(torch.autograd.grad((refine(*leaves) * weight).sum(), leaves))
    for ours, expected in zip(*gradients):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needs_gradient", ["images", "masks"])
def test_results_with_gradients_are_those_without(inputs, needs_gradient):
    """Also of flat parts, whose gradients are finite."""
    expected = PAMR(**SMALL)(*inputs)
    leaf = inputs[needs_gradient == "masks"].requires_grad_()
    refined = PAMR(**SMALL)(*inputs)
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-5)
    assert torch.autograd.grad(refined.square().sum(), leaf)[0].isfinite().all()


def test_saliency_reaches_the_image_through_a_models_masks():
    model = build_model(load_config("shapes/tcl.yaml", ["MODEL.DEVICE", "cpu", "MODEL.CLIP.PRETRAINED", ""])).eval()
    image = torch.randint(0, 256, (3, 48, 48), generator=torch.Generator().manual_seed(0)).float().requires_grad_()
    masks = model.crop_masks(*model.encode_crops(model.normalize_images([image])), model.text_features(["brick"]))
    (gradient,) = torch.autograd.grad(masks.sum(), image)
    assert gradient.isfinite().all() and gradient.any()


def test_exported_and_compiled_it_is_the_same(inputs):
    pamr, expected = PAMR(**SMALL), PAMR(**SMALL)(*inputs)
    exported = torch.export.export(pamr, inputs).module()
    torch.testing.assert_close(exported(*inputs), expected, rtol=0, atol=1e-5)
    compiled = torch.compile(pamr, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.fault("images and scores that do not fit, in PAMR", "an error that names both shapes")
@pytest.mark.parametrize(
    "images, masks", [((3, 8, 8), (1, 2, 4, 4)), ((2, 3, 8, 8), (1, 2, 4, 4)), ((1, 3, 8, 8), (4, 4))]
)
def test_other_shapes_are_refused(images, masks):
    with pytest.raises(ValueError, match="PAMR takes images .* and their scores"):
        PAMR()(torch.zeros(images), torch.zeros(masks))
