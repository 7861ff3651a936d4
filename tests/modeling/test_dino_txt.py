"""dino.txt's rule by its formulas, on small random models: there are no figures of its release."""

import pytest
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.modeling import DinoTxt
from tcl_d2.modeling.encoders.text import TextEmbedder
from tcl_d2.modeling.encoders.vision import IMAGENET_MEAN, IMAGENET_STD, build_vision_model
from tcl_d2.modeling.functional import normalize
from tcl_d2.modeling.tips import DinoTxtEncoder, build_image_head
from tests.golden import dinov3

IMAGES = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def draw(module: nn.Module) -> nn.Module:
    """Draw large weights, so that each part counts."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return module


def build(patches: str = "head") -> DinoTxtEncoder:
    vision = build_vision_model("MODEL.DINO_TXT", dinov3.golden_dinov3.__name__, "")
    vision.load_state_dict({name: value.float() for name, value in dinov3.load()["vision"].items()})
    text = TextTransformer(context_length=8, vocab_size=64, width=48, heads=3, layers=2, output_dim=256)
    head = draw(build_image_head(128, 2))
    return DinoTxtEncoder(vision, head, draw(text), IMAGENET_MEAN, IMAGENET_STD, patches)


def plain_head(tokens: Tensor, state: dict[str, Tensor], num_heads: int) -> Tensor:
    """Compute the head of tokens [N, C] by its formulas."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    for index in range(2):
        heads = linear(norm(tokens, f"{index}.norm1"), f"{index}.attn.qkv").unflatten(1, (3, num_heads, -1))
        query, key, value = heads.unbind(1)
        weights = (torch.einsum("ihd,jhd->hij", query, key) / query.shape[-1] ** 0.5).softmax(-1)
        attended = torch.einsum("hij,jhd->ihd", weights, value).flatten(1)
        tokens = tokens + state[f"{index}.ls1.gamma"] * linear(attended, f"{index}.attn.proj")
        hidden = norm(tokens, f"{index}.norm2")
        gated = F.silu(linear(hidden, f"{index}.mlp.fc1_g")) * linear(hidden, f"{index}.mlp.fc1_x")
        tokens = tokens + state[f"{index}.ls2.gamma"] * linear(gated, f"{index}.mlp.fc2")
    return norm(tokens, "2")


def test_the_head_is_its_formulas():
    encoder = build()
    head = encoder.model["head"]
    assert "0.attn.qkv.bias" not in head.state_dict() and len(head) == 3
    tokens = encoder.vision.tokens(IMAGES)
    expected = plain_head(tokens[0], head.state_dict(), num_heads=2)
    torch.testing.assert_close(head(tokens)[0], expected, rtol=0, atol=1e-4)
    patches = encoder.encode_patches(IMAGES)
    torch.testing.assert_close(patches[0].flatten(1).T, expected[5:], rtol=0, atol=1e-4)


def test_the_heads_sizes_are_the_releases():
    with torch.device("meta"):
        head = build_image_head(1024, 16)
    assert head[0].mlp.fc1_g.weight.shape == (2752, 1024) and head[0].attn.num_heads == 16


def test_patches_are_the_heads_or_the_backbones():
    features = {patches: build(patches).encode_patches(IMAGES) for patches in ("head", "backbone")}
    assert (features["head"] - features["backbone"]).abs().max() > 0.1
    torch.testing.assert_close(features["backbone"], build().vision(IMAGES))


def test_patches_meet_the_second_half_of_texts():
    """Prompts are normalized whole, then averaged, cut, and normalized again."""
    encoder = build()
    tokens = torch.randint(1, 63, (4 * 3, 8), generator=torch.Generator().manual_seed(0))
    tokens[:, 5] = 63  # the end
    prompts = F.normalize(encoder.model["text"](tokens), dim=1).unflatten(0, (4, 3))
    whole = F.normalize(prompts.mean(1), dim=1)
    expected = F.normalize(whole[:, 128:], dim=1)
    features = TextEmbedder(encoder, lambda texts: tokens)(["a", "b", "c", "d"], ["{}", "a {}", "the {}"])
    torch.testing.assert_close(features, expected)

    first = F.normalize(whole[:, :128], dim=1)
    cut_before = normalize(normalize(prompts[..., 128:], 2).mean(1), 1)
    assert (features - first).abs().max() > 0.1 and (features - cut_before).abs().max() > 1e-4


def test_texts_end_at_their_end_token():
    encoder = build()
    tokens = torch.tensor([[1, 2, 3, 63, 0, 0, 0, 0], [1, 2, 3, 63, 9, 9, 9, 0]])
    texts = encoder.encode_text(tokens)
    torch.testing.assert_close(texts[0], texts[1])


def test_the_own_protocol_is_the_notebooks():
    cfg = load_config("tips/dino_txt.yaml")
    test, size = cfg.TEST.ZERO_SHOT, cfg.INPUT
    assert (size.MIN_SIZE_TEST, size.RESIZE_TEST, test.CROP_SIZE, test.STRIDE) == (512, "pil_bicubic", 384, 192)
    assert test.TEMPLATES == ["openai_imagenet"] and cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]


@pytest.mark.fault("dino.txt: prompts' halves normalized, heads that do not divide, no such patches", "one error each")
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("TEST.ZERO_SHOT.NORMALIZE_PROMPTS", True, "NORMALIZE_PROMPTS is True; expected False: each prompt's whole"),
        ("MODEL.DINO_TXT.TEXT_HEADS", 7, "MODEL.DINO_TXT.TEXT_HEADS is 7; expected a divisor of TEXT_WIDTH 48"),
        ("MODEL.DINO_TXT.PATCHES", "both", "MODEL.DINO_TXT.PATCHES is 'both'; expected one of head, backbone"),
        ("MODEL.DINO_TXT.NAME", "resnet18", "MODEL.DINO_TXT.NAME is 'resnet18', a ResNet"),
    ],
)
def test_bad_settings_are_one_clear_error(key, value, message):
    small = ["MODEL.DINO_TXT.NAME", "golden_dinov3", "MODEL.DINO_TXT.PRETRAINED", "", "MODEL.DEVICE", "cpu"]
    sizes = ["MODEL.DINO_TXT.TEXT_WIDTH", 48, "MODEL.DINO_TXT.TEXT_HEADS", 3, "MODEL.DINO_TXT.TEXT_DEPTH", 1]
    cfg = load_config("tips/dino_txt.yaml", [*small, *sizes, key, value])
    with pytest.raises(ValueError, match=message):
        DinoTxt.check_encoder(cfg)
        DinoTxt(cfg)
