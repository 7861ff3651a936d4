"""Each loss head alone, against its formula written out; degenerate batches; the Gumbel-sigmoid's gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from tcl_d2.modeling import TCL_LOSS_REGISTRY, Grounding, Sim2Mask
from tcl_d2.modeling.losses import (
    FeatureTCLLoss,
    ImageSmoothnessLoss,
    ImageTCLLoss,
    MaskSmoothnessLoss,
    NegativeAreaLoss,
    PositiveAreaLoss,
    WholeImageLoss,
    total_variation,
)

ALL = ("ImageTCLLoss", "FeatureTCLLoss", "PositiveAreaLoss", "NegativeAreaLoss", "ImageSmoothnessLoss")
ALL += ("MaskSmoothnessLoss", "WholeImageLoss")


def make(batch: int = 3, fill: float | None = None) -> Grounding:
    torch.manual_seed(0)
    soft = torch.rand(batch, batch, 5, 6) if fill is None else torch.full((batch, batch, 5, 6), fill)
    embedding = torch.randn(batch, 8, 5, 6, requires_grad=True)
    hard = (soft.diagonal().permute(2, 0, 1)[:, None] > 0.5).float().requires_grad_()
    pictures = torch.randn(batch, 8, 5, 6)
    return Grounding(
        embedding=embedding,
        text=torch.randn(batch, 8),
        soft=soft.requires_grad_(),
        hard=hard,
        encode_masked=lambda masks: (pictures * masks).mean((2, 3)),
    )


def plain_info_nce(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.07
    rows = sum(-logits[i].log_softmax(0)[i] for i in range(len(a)))
    columns = sum(-logits[:, i].log_softmax(0)[i] for i in range(len(a)))
    return 0.5 * (rows + columns) / len(a)


def test_image_level():
    grounding = make()
    expected = plain_info_nce(grounding.encode_masked(grounding.hard), grounding.text)
    torch.testing.assert_close(ImageTCLLoss(weight=0.1)(grounding), 0.1 * expected)


def test_feature_level():
    grounding = make()
    similarity = torch.zeros(3, 3)
    for b in range(3):
        for n in range(3):
            mask = grounding.soft[b, n]
            pooled = (grounding.embedding[b] * mask).sum((1, 2)) / mask.sum()
            similarity[b, n] = F.cosine_similarity(pooled, grounding.text[n], dim=0)
    logits, target = similarity / 0.07, torch.arange(3)
    expected = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    torch.testing.assert_close(FeatureTCLLoss(weight=0.2)(grounding), 0.2 * expected)


def test_areas():
    grounding = make()
    positive = torch.stack([grounding.soft[i, i] for i in range(3)]).mean()
    negative = torch.stack([grounding.soft[i, j] for i in range(3) for j in range(3) if i != j]).mean()
    torch.testing.assert_close(PositiveAreaLoss(weight=0.4, prior=0.3)(grounding), 0.4 * (positive - 0.3).abs())
    torch.testing.assert_close(NegativeAreaLoss(weight=0.4, prior=0.1)(grounding), 0.4 * (negative - 0.1).abs())


def test_total_variation_of_a_ramp():
    """Neighbours along x differ by 2, along y by 3, everywhere."""
    ramp = 2 * torch.arange(4.0)[None, :] + 3 * torch.arange(5.0)[:, None]
    assert total_variation(ramp[None, None]).item() == pytest.approx(5)
    assert total_variation(torch.ones(1, 1, 1, 1)).item() == 0


def test_smoothness():
    grounding = make()
    torch.testing.assert_close(ImageSmoothnessLoss(weight=0.5)(grounding), 0.5 * total_variation(grounding.embedding))
    torch.testing.assert_close(MaskSmoothnessLoss(weight=0.5)(grounding), 0.5 * total_variation(grounding.soft))


def test_whole_image():
    grounding = make()
    expected = plain_info_nce(grounding.embedding.mean((2, 3)), grounding.text)
    torch.testing.assert_close(WholeImageLoss(weight=1.0)(grounding), expected)


def test_scale_is_at_most_100():
    """Beyond ln(100) the learnable log-scale changes nothing and gets no gradient."""
    grounding = make()
    head, at_limit = FeatureTCLLoss(), FeatureTCLLoss()
    head.logit_scale.data.fill_(10.0)
    at_limit.logit_scale.data.fill_(math.log(100))
    loss = head(grounding)
    loss.backward()
    torch.testing.assert_close(loss, at_limit(grounding), rtol=1e-4, atol=1e-5)
    assert head.logit_scale.grad == 0


@pytest.mark.parametrize("head", ALL)
@pytest.mark.parametrize("batch, fill", [(3, 0.0), (3, 1.0), (1, None), (1, 0.0)])
def test_gradients_are_finite_for_degenerate_batches(head, batch, fill):
    """Masks that are empty or full, and a batch of one pair."""
    grounding = make(batch, fill)
    loss = TCL_LOSS_REGISTRY.get(head)(weight=1.0)(grounding)
    loss.backward()
    assert loss.isfinite()
    for leaf in (grounding.embedding, grounding.soft, grounding.hard):
        assert leaf.grad is None or leaf.grad.isfinite().all()


def test_identical_captions():
    grounding = make()
    grounding.text[:] = grounding.text[0].clone()
    loss = FeatureTCLLoss(weight=1.0)(grounding)
    assert loss.isfinite() and loss > 0


def test_hard_mask_is_drawn_with_the_soft_masks_probability():
    sim2mask, logits = Sim2Mask(), torch.tensor([-2.0, 0.0, 1.5])[:, None].expand(3, 20000)
    torch.manual_seed(0)
    hard = sim2mask.hard(logits)
    assert set(hard.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(hard.mean(1), torch.sigmoid(logits[:, 0]), rtol=0, atol=0.02)


def test_hard_mask_gradient_is_the_relaxed_ones():
    """Straight-through: forward 1[y > 0.5], gradient that of y = sigmoid((logit + log(u / (1 - u))) / tau)."""
    torch.manual_seed(0)
    tau, logits, uniform = 0.7, torch.randn(50, requires_grad=True), torch.rand(50)
    hard = Sim2Mask(tau=tau).hard(logits, uniform)
    hard.sum().backward()
    y = torch.sigmoid((logits + torch.log(uniform / (1 - uniform))) / tau).detach()
    assert torch.equal(hard.detach(), (y > 0.5).float())
    torch.testing.assert_close(logits.grad, y * (1 - y) / tau)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"masks' shape \(4, 1\)"):
        Sim2Mask().hard(torch.zeros(4, 1), torch.rand(4, 4))
