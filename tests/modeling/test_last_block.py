"""DINOv3 and the last block of vision models: golden figures, and what breaks code written for a VisionTransformer."""

import math
import re

import pytest
import timm
import torch
from detectron2.modeling import build_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.modeling.dense_clip.heads import build_dense_head
from tcl_d2.modeling.encoders.positions import PositionRule
from tcl_d2.modeling.encoders.vision import DINOV2_POSITIONS, VisionEncoder, _return_tokens, build_vision_model
from tests.golden import dinov3 as golden

KEY = "MODEL.RECO.ENCODER"
IMAGES = ("square", "wide")  # 6 x 6 and 4 x 7 patches


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return golden.build_vision()


@pytest.fixture(params=IMAGES)
def figures(request) -> dict[str, torch.Tensor]:
    figures = golden.load()["images"][request.param]
    return {**figures, "image": figures["image"].float()}


# ------------------------------------------------------------------------------------ golden figures


@torch.no_grad()
def test_tokens_are_the_golden_ones(encoder, figures):
    """After the norm, five prefix tokens first; the map has the patches alone."""
    check(encoder.tokens(figures["image"]), figures["tokens"])
    check(encoder(figures["image"]).flatten(2).transpose(1, 2), figures["tokens"][:, 5:])


@torch.no_grad()
def test_last_block_gives_the_golden_tokens(encoder, figures):
    block = encoder.last_block(figures["image"])
    check(block.finish(), figures["tokens"])
    check(block.finish(each_alone=True), figures["value_tokens"])


@torch.no_grad()
def test_last_heads_are_the_golden_ones(encoder, figures):
    """Before RoPE and after it; logits of Talk2DINO's class token are without it."""
    block = encoder.last_block(figures["image"])
    query, key, value = block.project_heads()
    if "qkv_of_hook" in figures:
        joined = torch.cat([heads.transpose(1, 2).flatten(2) for heads in (query, key, value)], 2)
        check(joined, figures["qkv_of_hook"])
    check(block.rotate(query), figures["q_rotated"])
    check(block.rotate(key), figures["k_rotated"])
    check((query[:, :, :1] / 8) @ key[:, :, 5:].mT, figures["class_logits_without_rope"])
    attention = (block.rotate(query)[:, :, 0, None] @ block.rotate(key).mT / 8).softmax(-1)[:, :, 0]
    check(attention, figures["attention_of_class_token"])


@torch.no_grad()
def test_values_are_those_of_the_heads(encoder, figures):
    value = encoder.last_block(figures["image"]).project_heads()[2][:, :, 5:]
    check(encoder.values(figures["image"]).flatten(2), value.permute(0, 1, 3, 2).flatten(1, 2))


# ------------------------------------------------------------------------------------ traps


@torch.no_grad()
def test_a_block_without_rope_gives_other_tokens(encoder):
    """In silence; so would one whose LayerScale is as timm makes it: then nothing would be seen here."""
    figures = golden.load()["images"]["wide"]
    block = encoder.last_block(figures["image"].float())
    without = block._replace(rope=None).finish()
    assert (without - figures["tokens"]).abs().max() > 1e-2
    assert encoder.model.blocks[-1].gamma_1.mean() > 0.1


@torch.no_grad()
def test_a_rest_that_is_no_whole_patch_is_not_seen(encoder):
    image = golden.load()["images"]["wide"]["image"].float()
    assert torch.equal(encoder(F.pad(image, (0, 15, 0, 3))), encoder(image))


@torch.no_grad()
def test_separate_biases_of_queries_and_values_are_added():
    """The models `_qkvb` use their layer's weights without calling it; keys have no bias."""
    size = {"embed_dim": 32, "num_heads": 2, "depth": 2, "init_values": 0.6, "num_classes": 0}
    model = timm.create_model("vit_small_patch16_dinov3_qkvb", **size)
    attention = model.blocks[-1].attn
    nn.init.normal_(attention.q_bias)
    nn.init.normal_(attention.v_bias)
    encoder, image = VisionEncoder(_return_tokens(model)), torch.randn(1, 3, 32, 48)

    block = encoder.last_block(image)
    query, key, value = block.project_heads()
    attended = F.scaled_dot_product_attention(block.rotate(query), block.rotate(key), value)
    expected = attention(model.blocks[-1].norm1(block.tokens), rope=block.rope)
    check(attention.proj(attended.transpose(1, 2).flatten(2)), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"reg_tokens": 4, "no_embed_class": True}, {"class_token": False}]
)
def test_last_block_of_a_vision_transformer(options):
    """The heads are those of its attention; the block finishes as the model does; alone, tokens see themselves."""
    options = {**options, "global_pool": "avg"} if "class_token" in options else options
    model = VisionTransformer(48, 16, num_classes=0, embed_dim=48, depth=3, num_heads=3, init_values=0.6, **options)
    encoder, image = VisionEncoder(_return_tokens(model)), torch.randn(2, 3, 32, 64)
    block = encoder.last_block(image)
    check(block.finish(), encoder.tokens(image))

    query, key, value = block.project_heads()
    attention, normed = model.blocks[-1].attn, model.blocks[-1].norm1(block.tokens)
    attended = F.scaled_dot_product_attention(block.rotate(query), block.rotate(key), value)
    check(attention.proj(attended.transpose(1, 2).flatten(2)), attention(normed))

    last = model.blocks[-1]
    tokens = block.tokens + last.ls1(attention.proj(value.transpose(1, 2).flatten(2)))
    tokens = tokens + last.ls2(last.mlp(last.norm2(tokens)))
    check(block.finish(each_alone=True), model.forward_head(model.norm(tokens)))


# ------------------------------------------------------------------------------------ positions


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("grid", [(6, 6), (7, 7), (5, 9)])
def test_positions_with_antialias(mode, grid):
    """Those of patches alone, whether or not others come before them."""
    position = torch.randn(2 + 49, 8)
    resized = PositionRule(antialias=mode).resize(position, (7, 7), grid)
    patches = position[2:].T.reshape(1, 8, 7, 7)
    expected = F.interpolate(patches, grid, mode=mode, antialias=True, align_corners=False)[0].flatten(1).T
    assert torch.equal(resized, torch.cat([position[:2], expected if grid != (7, 7) else position[2:]]))
    assert grid == (7, 7) or not torch.allclose(PositionRule().resize(position, (7, 7), grid), resized, atol=1e-3)


@torch.no_grad()
def test_positions_are_timms_own_with_dynamic_sizes():
    """Bicubic with antialias, as DINOv2's release has them for models with registers, which have no positions."""
    options = {"img_size": 112, "embed_dim": 48, "depth": 2, "num_heads": 2, "init_values": 0.6, "num_classes": 0}
    model = timm.create_model("vit_small_patch14_reg4_dinov2", dynamic_img_size=True, global_pool="", **options)
    nn.init.normal_(model.pos_embed)
    image = torch.randn(1, 3, 84, 140)
    expected = model.eval()(image)
    check(VisionEncoder(_return_tokens(model), DINOV2_POSITIONS).tokens(image), expected)


# ------------------------------------------------------------------------------------ models and their files


def test_dinov3_of_timm_is_taken_without_its_weights():
    model = build_vision_model(KEY, "golden_dinov3", "")
    assert model.num_prefix_tokens == 5 and model(torch.randn(1, 3, 48, 32)).shape == (1, 5 + 6, 128)


def test_files_of_the_releases_are_read(tmp_path):
    """In their own names, with what is for training alone."""
    weights = {name: value.float() for name, value in golden.load()["vision"].items()}
    release = {"mask_token": torch.zeros(1, 128), "rope_embed.periods": torch.ones(16)}
    for name, value in weights.items():
        release[re.sub(r"gamma_(\d)", r"ls\1.gamma", name).replace("reg_token", "storage_tokens")] = value
    torch.save(release, tmp_path / "dinov3.pth")
    model = build_vision_model(KEY, "golden_dinov3", str(tmp_path / "dinov3.pth"))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.fault("a vision model with positions of one size only, such as EVA-02", "it is named")
@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_rope_224"])
def test_other_evas_are_refused(name):
    with pytest.raises(ValueError, match=f"{KEY}.NAME is '{name}', a Eva; expected .*DINOv3"):
        build_vision_model(KEY, name, "")


def test_head_size_of_64_is_not_assumed(encoder):
    size = {"embed_dim": 256, "num_heads": 2, "depth": 2, "num_classes": 0}
    encoder = VisionEncoder(_return_tokens(timm.create_model("vit_base_patch16_dinov3", **size)))
    query, _, _ = encoder.last_block(torch.randn(1, 3, 16, 32)).project_heads()
    assert query.shape == (1, 2, 7, 128) and math.isclose(encoder.model.blocks[-1].attn.scale, 128**-0.5)


@pytest.mark.parametrize(
    "name, multiple",
    [("golden_dinov3", 16), ("test_vit", 16), ("vit_tiny_patch16_224", 16), ("vit_small_patch14_dinov2", 56)],
)
def test_proxyclip_pads_to_whole_patches(name, multiple):
    """To 56, as the release, where that is whole patches; else to those of the vision model and of CLIP."""
    proxy = ["MODEL.DENSE_CLIP.PROXY.NAME", name, "MODEL.DENSE_CLIP.PROXY.PRETRAINED", ""]
    assert build_dense_head("proxyclip", load_config("shapes/dense_clip.yaml", proxy)).pad_to == multiple


DINOV3 = {
    "shapes/dense_clip.yaml": ("MODEL.DENSE_CLIP.PROXY", ("MODEL.DENSE_CLIP.HEAD", "proxyclip")),
    "shapes/reco.yaml": ("MODEL.RECO.ENCODER", ("MODEL.RECO.INDEX", "", "MODEL.RECO.IMAGE_SIZE", 48)),
}


@torch.no_grad()
@pytest.mark.parametrize("config", DINOV3)
def test_proxyclip_and_reco_take_dinov3(config):
    """Crops are padded to whole patches of both models."""
    key, options = DINOV3[config]
    model = build_model(load_config(config, [f"{key}.NAME", "golden_dinov3", f"{key}.PRETRAINED", "", *options])).eval()
    features, place = model.encode_crops(torch.randn(1, 3, 40, 70))
    assert model.pad_to == 16 and place.size == (48, 80)
    vision = features.embedding if "reco" in config else features.clip_features
    assert vision.shape[2:] == (3, 5) and vision.isfinite().all()
