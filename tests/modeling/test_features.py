"""Features of pixels and texts, as other projects take them: what the methods' own scores are made of."""

import pytest
import torch
from detectron2.modeling import build_model

from tcl_d2 import load_config
from tcl_d2.modeling import ZeroShotSegmentor

OPTIONS = ["MODEL.DEVICE", "cpu", "TEST.ZERO_SHOT.TEXT_CACHE", "", "TEST.ZERO_SHOT.REFINE", "none"]
WORDS = ["brick", "wood", "lava"]


def build(config: str, *options: object) -> ZeroShotSegmentor:
    torch.manual_seed(0)
    return build_model(load_config(config, [*OPTIONS, *options])).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 50, 75), generator=torch.Generator().manual_seed(0)).float()


def cosines(model: ZeroShotSegmentor, images: torch.Tensor) -> torch.Tensor:
    features = model.pixel_features(images)
    return features._replace(
        values=torch.einsum("bdhw,kd->bkhw", features.values, model.text_features(WORDS))
    ).enlarge()


def crop_scores(model: ZeroShotSegmentor, images: torch.Tensor) -> torch.Tensor:
    crops = model.normalize_images(list(images))
    return model.crop_masks(*model.encode_crops(crops), model.text_features(WORDS))


@pytest.mark.parametrize("head", ["clip", "maskclip", "sclip", "naclip"])
@torch.no_grad()
def test_products_are_the_scores_of_a_dense_clip(head, images):
    model = build("shapes/dense_clip.yaml", "MODEL.DENSE_CLIP.HEAD", head, "MODEL.DENSE_CLIP.SCORES", "cosine")
    torch.testing.assert_close(cosines(model, images), crop_scores(model, images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_products_are_the_similarities_of_tcl(images):
    model = build("shapes/tcl.yaml", "TEST.ZERO_SHOT.KP_WEIGHT", 0.0)
    model.sim2mask.w.fill_(0.01), model.sim2mask.b.fill_(0.0)  # where a sigmoid is a line
    torch.testing.assert_close(4 * (crop_scores(model, images) - 0.5) / 0.01, cosines(model, images), rtol=0, atol=1e-3)


@torch.no_grad()
def test_each_patch_has_the_feature_of_its_group(images):
    pytest.importorskip("transformers")
    model = build("shapes/groupvit.yaml")
    features, _ = model.encode_crops(model.normalize_images(list(images)))
    values = model.pixel_features(images).values
    groups = features.group_features[0][features.group_of_pixel[0, 4::8, 4::8].long()]
    torch.testing.assert_close(values[0].permute(1, 2, 0), groups)


def test_gradients_reach_what_is_trained(images):
    model = build("shapes/tcl.yaml")
    model.pixel_features(images).values[:, 0].sum().backward()
    assert all(p.grad is not None for p in model.grounder.decoder.parameters())
    assert all(p.grad is None for p in model.clip.parameters())


@pytest.mark.fault("pixel embeddings of images that are no whole patches", "an error; pixel_features pads")
def test_parts_of_patches_are_refused(images):
    model = build("shapes/tcl.yaml")
    with pytest.raises(ValueError, match="multiples of the patches' side, 8 pixels"):
        model.pixel_embedding(model.normalize_images(list(images)))
    pixels = model.normalize_images(list(images[..., :48, :72])).requires_grad_()
    assert torch.autograd.grad(model.pixel_embedding(pixels)[:, 0].sum(), pixels)[0].any()
