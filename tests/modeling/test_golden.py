"""The official release's figures: losses, gradients, masks with every option, sliding window, in fp32."""

import pytest
import torch
from torch.nn import functional as F

from tcl_d2.checkpoint import from_official
from tcl_d2.modeling.encoders import linear
from tcl_d2.modeling.tcl import winograd
from tests import golden


@pytest.fixture(scope="module", params=["torch", "winograd", "slow_blas"], autouse=True)
def products(request):
    """Each figure is seen with torch's products and convolutions, with those of large maps, and where BLAS is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "is_faster", lambda *_: request.param == "winograd")
        patch.setattr(linear, "blas_is_slow", lambda: request.param == "slow_blas")
        yield


@pytest.fixture(scope="module", params=["stage1", "stage2"])
def step(request):
    """One training step of the golden model: its figures, losses and gradients, under the official names."""
    torch.manual_seed(0)
    figures = golden.load()["train"][request.param]
    model = golden.build_model(train_last_blocks=request.param == "stage2").train()
    noise = figures["uniform"].diagonal().permute(2, 0, 1)[:, None]  # ours draws noise for matching pairs alone
    images, tokens = golden.load()["image"].float(), golden.load()["tokens"]
    losses = model.compute_losses(images, tokens, noise)
    sum(losses.values()).backward()
    with torch.no_grad():
        soft = torch.sigmoid(model.sim2mask(model.pixel_embedding(images), model.encode_text(tokens)))
    return figures, model, losses, soft


def test_losses_are_the_releases(step):
    figures, _, losses, _ = step
    assert losses.keys() == set(golden.LOSS_NAMES.values())
    for official, ours in golden.LOSS_NAMES.items():
        torch.testing.assert_close(losses[ours], figures["losses"][official], rtol=1e-5, atol=0)
    torch.testing.assert_close(sum(losses.values()), figures["total"], rtol=1e-5, atol=0)


def test_gradients_are_the_releases(step):
    """Every stored gradient within 1e-4, every gradient's norm, and no gradient beside those."""
    figures, model, _, _ = step
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = from_official({key: torch.tensor(value) for key, value in figures["grad_norms"].items()})
    first = 0 if not any("grounder.blocks" in key for key in norms) else None
    assert ours.keys() == norms.keys(), first
    for name, norm in norms.items():
        torch.testing.assert_close(ours[name].norm(), norm, rtol=1e-4, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    for name, gradient in from_official(figures["grads"]).items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{name}: {error}"


def test_soft_masks_are_the_releases(step):
    figures, _, _, soft = step
    matching = torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(soft[matching][:, None], figures["soft_pos_mask"], rtol=0, atol=1e-5)
    torch.testing.assert_close(soft[~matching].view(4, 3, 24, 24), figures["soft_neg_mask"], rtol=0, atol=1e-5)


def test_caption_embedding():
    expected = golden.load()["inference"]["caption_embedding"]
    embedding = golden.build_clip().encode_text(golden.load()["tokens"])
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_class_embedding_is_mean_over_templates():
    """7 classes x 3 templates: the vocabulary's path through templates, with the golden tokens for tokenizer."""
    tokens = golden.load()["inference"]["tokens"]
    model = golden.build_model()
    model.embed_vocabulary.tokenizer = lambda prompts: torch.stack(
        [tokens[int(prompt.split()[1]), int(prompt.split()[0])] for prompt in prompts]
    )
    embedding = model.embed_vocabulary([str(i) for i in range(7)], [f"{i} {{}}" for i in range(3)])
    torch.testing.assert_close(embedding, golden.load()["inference"]["text_embedding"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name, pamr, kp_weight", [("plain", False, 0), ("kp", False, 0.3), ("pamr", True, 0), ("pamr_kp", True, 0.3)]
)
@torch.no_grad()
def test_masks_of_a_crop_are_the_releases(name, pamr, kp_weight):
    """Masks of a crop that needs padding, at image size."""
    figures = golden.load()["inference"]
    model = golden.build_model(pamr, kp_weight)
    masks = model.crop_masks(*model.encode_crops(figures["image"].float()), figures["text_embedding"])
    torch.testing.assert_close(masks, figures[name], rtol=0, atol=1e-5)


@torch.no_grad()
def test_scores_averaged_over_windows_are_the_releases():
    figures = golden.load()["inference"]
    model = golden.build_model(pamr=True, kp_weight=0.3)
    model.set_text_embeddings(figures["text_embedding"], background=True)
    image = figures["slide_image"][0].float()
    (scores,) = model([{"image": image}])
    torch.testing.assert_close(scores["sem_seg"], figures["slide_scores"][0], rtol=0, atol=1e-5)
    height, width = 2 * image.shape[1] - 7, 2 * image.shape[2] - 3
    (enlarged,) = model([{"image": image, "height": height, "width": width}])
    assert torch.equal(enlarged["sem_seg"].argmax(0), figures["slide_pred"][0].long())


@torch.no_grad()
def test_similarities_are_the_releases():
    """The grounder's raw similarities on the padded crop, before w, b and the sigmoid."""
    figures = golden.load()["inference"]
    model = golden.build_model()
    image = F.pad(figures["image"].float(), (1, 1, 1, 2))
    embedding = model.grounder(model.clip.forward_blocks(image, model.freeze), model.clip.grid(image))
    similarity = (model.sim2mask(embedding, figures["text_embedding"]) - model.sim2mask.b) / model.sim2mask.w
    torch.testing.assert_close(similarity, figures["simmap"], rtol=0, atol=1e-5)
