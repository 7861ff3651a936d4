"""Each loss head alone, against its formula written out; degenerate batches; the Gumbel-sigmoid's gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.modeling import TCL_LOSS_REGISTRY, Grounding, Sim2Mask
from tcl_d2.modeling.tcl import mask_statistics
from tcl_d2.modeling.tcl.losses import (
    FeatureTCLLoss,
    ImageTCLLoss,
    ImageTVLoss,
    LossHead,
    MaskTVLoss,
    NegativeAreaLoss,
    PositiveAreaLoss,
    WholeImageLoss,
    build_losses,
    takes_labels,
)
from tcl_d2.modeling.tcl.mask_statistics import compute_mask_statistics, total_variation
from tests import golden

ALL_HEADS = sorted(  # those of labels are in test_sem_seg_losses.py
    name for name, head in TCL_LOSS_REGISTRY if head.__module__ == LossHead.__module__ and not takes_labels(head)
)


class Batch:
    """Random pixel embeddings, soft and hard masks of a few pairs, and the Grounding of them."""

    def __init__(self, size: int = 3, fill: float | None = None):
        torch.manual_seed(0)
        self.soft = torch.rand(size, size, 5, 6) if fill is None else torch.full((size, size, 5, 6), fill)
        self.embedding = torch.randn(size, 8, 5, 6, requires_grad=True)
        self.hard = (self.soft.diagonal().permute(2, 0, 1)[:, None] > 0.5).float().requires_grad_()
        self.soft.requires_grad_()
        self.pictures, self.text = torch.randn(size, 8, 5, 6), torch.randn(size, 8)

    @property
    def grounding(self) -> Grounding:
        wanted = ("area", "mask_tv", "similarity")
        return Grounding(
            self.text,
            masked_image=(self.pictures * self.hard).mean((2, 3)),
            mean_embedding=self.embedding.mean((2, 3)),
            image_tv=total_variation(self.embedding).mean(1),
            **compute_mask_statistics(self.embedding, self.soft, self.text, wanted),
        )


def plain_info_nce(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.07
    rows = sum(-logits[i].log_softmax(0)[i] for i in range(len(a)))
    columns = sum(-logits[:, i].log_softmax(0)[i] for i in range(len(a)))
    return 0.5 * (rows + columns) / len(a)


def test_image_level_loss_equals_a_plain_info_nce():
    batch = Batch()
    expected = plain_info_nce((batch.pictures * batch.hard).mean((2, 3)), batch.text)
    torch.testing.assert_close(ImageTCLLoss(weight=0.1)(batch.grounding), 0.1 * expected)


def test_feature_level_loss_contrasts_features_under_masks():
    batch = Batch()
    similarity = torch.zeros(3, 3)
    for b in range(3):
        for n in range(3):
            mask = batch.soft[b, n]
            pooled = (batch.embedding[b] * mask).sum((1, 2)) / mask.sum()
            similarity[b, n] = F.cosine_similarity(pooled, batch.text[n], dim=0)
    logits, target = similarity / 0.07, torch.arange(3)
    expected = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    torch.testing.assert_close(FeatureTCLLoss(weight=0.2)(batch.grounding), 0.2 * expected)


def test_area_losses_are_distances_from_the_priors():
    batch = Batch()
    positive = torch.stack([batch.soft[i, i] for i in range(3)]).mean()
    negative = torch.stack([batch.soft[i, j] for i in range(3) for j in range(3) if i != j]).mean()
    torch.testing.assert_close(PositiveAreaLoss(weight=0.4, prior=0.3)(batch.grounding), 0.4 * (positive - 0.3).abs())
    torch.testing.assert_close(NegativeAreaLoss(weight=0.4, prior=0.1)(batch.grounding), 0.4 * (negative - 0.1).abs())


def test_total_variation_of_a_ramp():
    """Neighbors along x differ by 2, along y by 3, everywhere."""
    ramp = 2 * torch.arange(4.0)[None, :] + 3 * torch.arange(5.0)[:, None]
    assert total_variation(ramp[None, None]).tolist() == [[5]]
    assert total_variation(torch.ones(1, 1, 1, 1)).item() == 0


def test_tv_losses_equal_plain_differences():
    batch = Batch()

    def plain(x: torch.Tensor) -> torch.Tensor:
        return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()

    torch.testing.assert_close(ImageTVLoss(weight=0.5)(batch.grounding), 0.5 * plain(batch.embedding))
    torch.testing.assert_close(MaskTVLoss(weight=0.5)(batch.grounding), 0.5 * plain(batch.soft))


def test_whole_image_loss_equals_a_plain_info_nce():
    batch = Batch()
    expected = plain_info_nce(batch.embedding.mean((2, 3)), batch.text)
    torch.testing.assert_close(WholeImageLoss(weight=1.0)(batch.grounding), expected)


def test_scale_is_at_most_100():
    """Beyond ln(100) the learnable log-scale changes nothing and gets no gradient."""
    batch = Batch()
    head, at_limit = FeatureTCLLoss(), FeatureTCLLoss()
    head.logit_scale.data.fill_(10.0)
    at_limit.logit_scale.data.fill_(math.log(100))
    loss = head(batch.grounding)
    loss.backward()
    torch.testing.assert_close(loss, at_limit(batch.grounding), rtol=1e-4, atol=1e-5)
    assert head.logit_scale.grad == 0


@pytest.mark.fault("masks all zero or all one, one image in the batch", "finite losses and gradients")
@pytest.mark.parametrize("head", ALL_HEADS)
@pytest.mark.parametrize("size, fill", [(3, 0.0), (3, 1.0), (1, None), (1, 0.0)])
def test_gradients_are_finite_for_degenerate_batches(head, size, fill):
    """Masks that are empty or full, and a batch of one pair."""
    batch = Batch(size, fill)
    loss = TCL_LOSS_REGISTRY.get(head)(weight=1.0)(batch.grounding)
    loss.backward()
    assert loss.isfinite()
    for leaf in (batch.embedding, batch.soft, batch.hard):
        assert leaf.grad is None or leaf.grad.isfinite().all()


def test_a_lone_pair_has_no_negatives():
    assert NegativeAreaLoss(weight=1.0, prior=0.3)(Batch(1).grounding) == 0


@pytest.mark.fault("identical captions in a batch", "finite losses and gradients")
def test_identical_captions():
    batch = Batch()
    batch.text[:] = batch.text[0].clone()
    loss = FeatureTCLLoss(weight=1.0)(batch.grounding)
    assert loss.isfinite() and loss > 0


# ------------------------------------------------------------------------------- in parts: the same, in less memory


def gradients_of(run, *leaves: torch.Tensor) -> list[torch.Tensor]:
    values = run()
    return [*values, *torch.autograd.grad(sum(value.sin().sum() for value in values), leaves)]


@pytest.mark.parametrize("share", [1 / 8, 3 / 8, 1])
def test_statistics_of_pairs_in_parts_equal_those_of_dense_masks(monkeypatch, share):
    """Values and gradients, for one text at a time, a few, and all at once."""
    torch.manual_seed(0)
    embedding, text = torch.randn(2, 8, 5, 6, requires_grad=True), torch.randn(7, 8)
    sim2mask, wanted = Sim2Mask(), ("area", "mask_tv", "similarity")
    leaves = embedding, sim2mask.w, sim2mask.b

    def dense():
        cosine = torch.einsum("bdhw,nd->bnhw", F.normalize(embedding, dim=1), F.normalize(text, dim=1))
        return compute_mask_statistics(embedding, (sim2mask.w * cosine + sim2mask.b).sigmoid(), text, wanted).values()

    expected = gradients_of(dense, *leaves)
    monkeypatch.setattr(mask_statistics, "_SHARE_AT_ONCE", share)
    in_parts = gradients_of(
        lambda: mask_statistics.pair_statistics(embedding, text, sim2mask, wanted).values(), *leaves
    )
    for ours, theirs in zip(in_parts, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"checkpoint_masked": True}])
def test_micro_batches_give_the_undivided_batchs_losses_and_gradients(options):
    """Of the golden model, with the noise that it draws."""
    images, tokens = golden.load()["image"].float(), golden.load()["tokens"]
    results = []
    for model_options in ({}, options):
        model = golden.build_model(train_last_blocks=True, **model_options).train()
        torch.manual_seed(0)  # of the noise
        losses = model.compute_losses(images, tokens)
        sum(losses.values()).backward()
        results.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))

    (losses, gradients), (divided_losses, divided_gradients) = results
    for name in losses:
        torch.testing.assert_close(divided_losses[name], losses[name], rtol=1e-5, atol=1e-7)
    assert gradients.keys() == divided_gradients.keys()
    for name, gradient in gradients.items():
        assert (divided_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_only_statistics_that_a_head_needs_are_computed():
    images, tokens = golden.load()["image"].float(), golden.load()["tokens"]
    heads = (PositiveAreaLoss(), MaskTVLoss())
    grounding = golden.build_model(heads=heads).train().ground(images, tokens)
    assert grounding.masked_image is None and grounding.similarity is None and grounding.mean_embedding is None
    assert grounding.area is not None and grounding.mask_tv is not None


def test_no_mask_of_all_pairs_is_made_where_no_head_needs_one(monkeypatch):
    monkeypatch.setattr(Sim2Mask, "forward", None)  # it makes them
    images, tokens = golden.load()["image"].float(), golden.load()["tokens"]
    losses = golden.build_model(heads=(ImageTCLLoss(), WholeImageLoss())).train().compute_losses(images, tokens)
    assert losses.keys() == {"loss_tcl_image", "loss_whole_image"}


def test_a_head_that_needs_what_does_not_exist_is_refused():
    class MistypedLoss(LossHead):
        name, weight_key, needs = "loss_mistyped", "AREA_POS", ("aera",)

    with pytest.raises(ValueError, match="MistypedLoss needs 'aera'.*masked_image.*area"):
        MistypedLoss()


def test_a_head_is_added_to_the_default_list_by_one_key():
    cfg = load_config(None, ["MODEL.TCL.EXTRA_LOSS_HEADS", ["WholeImageLoss"]])
    names = [type(head).__name__ for head in build_losses(cfg)]
    assert names == [*cfg.MODEL.TCL.LOSS_HEADS, "WholeImageLoss"] and len(names) > 1


# -------------------------------------------------------------------------------------------------- hard masks


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
