"""TIPSv2 gives the figures of its release, and a plausible mistake in any of its parts is seen."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.modeling.encoders.positions import PositionRule
from tcl_d2.modeling.encoders.text import TextEmbedder
from tcl_d2.modeling.encoders.vision import IMAGENET_MEAN, IMAGENET_STD
from tcl_d2.modeling.functional import normalize
from tcl_d2.modeling.segmentor.base import ZeroShotSegmentor
from tcl_d2.modeling.tips import TIPSEncoder, TIPSTokenizer, TIPSv2
from tcl_d2.modeling.tips.encoder import build_image_tower
from tcl_d2.modeling.tips.text import find_tokenizer, load_text_tower
from tcl_d2.utils.resize import resize_bicubic, resize_bilinear
from tests.golden import tips

transformers = pytest.importorskip("transformers")
GOLDEN = tips.load()


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("towers")


@pytest.fixture
def encoder(folder) -> TIPSEncoder:
    """A new one each time, for mistakes to be made in it."""
    return tips.build_encoder(folder)


@pytest.fixture
def model(encoder) -> TIPSv2:
    return tips.build_model(encoder)


# ------------------------------------------------------------------------------------------------- images


def values(model: TIPSv2, name: str) -> Tensor:
    features, _ = model.encode_crops(model.normalize_images([GOLDEN["images"][name]["image"]]))
    return model.clip.encode_patches(features.images).permute(0, 2, 3, 1)


def difference(model: TIPSv2, name: str) -> float:
    """Return how far values are from the release's."""
    return (values(model, name) - GOLDEN["images"][name]["values"]).abs().max().item()


@pytest.mark.parametrize("name", ["square", "stretched"])
def test_values_cosines_and_labels_of_whole_images_are_the_releases(encoder, name):
    golden, text = GOLDEN["images"][name], GOLDEN["text"]["class_vectors"]
    model = tips.build_model(encoder, crop_size=0, stride=1, scores="cosine")
    assert difference(model, name) < 5e-6
    features, _ = model.encode_crops(model.normalize_images([golden["image"]]))
    cosines = model.clip_similarity(features.clip_features, text)[0]
    torch.testing.assert_close(cosines, golden["cosines"], rtol=0, atol=5e-7)

    size = dict(zip(("height", "width"), golden["label_size"]))
    (output,) = model([{"image": golden["image"], **size, "labels_only": True}])
    assert torch.equal(output["sem_seg_labels"], golden["whole_labels"].long())


def test_tokens_of_the_plain_forward_are_the_releases(model):
    """The class token and the register are the first two."""
    golden = GOLDEN["images"]["square"]
    tokens = model.clip.vision.tokens(model.normalize_images([golden["image"]]))
    expected = torch.cat([golden["class_tokens"], golden["patch_tokens"]], 1)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=5e-6)


def test_another_normalization_of_the_images_is_undone(folder):
    """The tower sees x / 255, under TCL's protocol too."""
    clip = tips.build_encoder(folder, IMAGENET_MEAN, IMAGENET_STD)
    model = tips.build_model(clip, pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD)
    assert difference(model, "square") < 5e-6


def forget_layer_scale(model: TIPSv2) -> None:
    model.clip.model["vision"].blocks[-1].ls1 = nn.Identity()


def forget_mlp(model: TIPSv2) -> None:
    model.clip.model["vision"].blocks[-1].mlp.fc2 = nn.Linear(256, 128).apply(lambda x: x.requires_grad_(False))
    for parameter in model.clip.model["vision"].blocks[-1].mlp.fc2.parameters():
        parameter.zero_()


def forget_norm(model: TIPSv2) -> None:
    model.clip.model["vision"].norm = nn.Identity()


def normalize_as_imagenet(model: TIPSv2) -> None:
    model.pixel_mean.copy_(torch.tensor(IMAGENET_MEAN)[:, None, None])
    model.pixel_std.copy_(torch.tensor(IMAGENET_STD)[:, None, None])


@pytest.mark.parametrize("mistake", [forget_layer_scale, forget_mlp, forget_norm, normalize_as_imagenet])
def test_a_mistake_in_the_image_tower_is_seen(model, mistake):
    mistake(model)
    assert difference(model, "square") > 0.01


@pytest.mark.parametrize("rule", [PositionRule(), PositionRule(antialias="bicubic")])
def test_positions_of_another_rule_are_seen(model, rule):
    model.clip.vision.position = rule
    assert difference(model, "square") < 5e-6 and difference(model, "stretched") > 0.05


def test_padding_in_place_of_stretching_is_seen(model, monkeypatch):
    monkeypatch.setattr(TIPSv2, "encode_crops", ZeroShotSegmentor.encode_crops)
    image = torch.randint(0, 256, (3, 80, 115), generator=torch.Generator().manual_seed(0))
    padded, _ = model.encode_crops(model.normalize_images([image]))
    monkeypatch.undo()
    stretched, place = model.encode_crops(model.normalize_images([image]))
    assert stretched.images.shape == padded.images.shape == (1, 3, 84, 126) and place.size == (80, 115)
    assert (stretched.clip_features - padded.clip_features).abs().max() > 0.01
    (output,) = model([{"image": image}])
    assert output["sem_seg"].shape == (6, 80, 115)


@register_model
def swiglu_tips(pretrained: bool = False, **options) -> VisionTransformer:
    """Build a tower with a gated MLP, as TIPSv2's giant, and heads of 72, as SO400m's."""
    size = {"img_size": 56, "patch_size": 14, "embed_dim": 144, "num_heads": 2, "depth": 2, "mlp_ratio": 2}
    gate = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "init_values": 1.0, "reg_tokens": 1}
    model = VisionTransformer(**size, **gate, no_embed_class=True, num_classes=options.get("num_classes", 0))
    model.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return model


def plain_values(state: dict[str, Tensor], image: Tensor, heads: int) -> Tensor:
    """Compute the values of an image [3, H, W] in 0..1 by their formulas, for a gated MLP: [h*w, C]."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def add_mlp(x: Tensor, block: str) -> Tensor:
        gate, value = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.w12").chunk(2, -1)
        return x + state[f"{block}.ls2.gamma"] * linear(F.silu(gate) * value, f"{block}.mlp.w3")

    kernel = state["patch_embed.proj.weight"]
    patches = F.conv2d(image[None], kernel, state["patch_embed.proj.bias"], stride=kernel.shape[-1])[0].flatten(1).T
    positions = state["pos_embed"][0]
    x = torch.cat([state["cls_token"][0] + positions[:1], state["register_tokens"][0], patches + positions[1:]])
    for index in range(2):
        block = f"blocks.{index}"
        query, key, value = (
            linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(1, (3, heads, -1)).unbind(1)
        )
        weights = torch.einsum("ihd,jhd->hij", query, key) / query.shape[-1] ** 0.5
        seen = value if index == 1 else torch.einsum("hij,jhd->ihd", weights.softmax(-1), value)
        x = add_mlp(x + state[f"{block}.ls1.gamma"] * linear(seen.flatten(1), f"{block}.attn.proj"), block)
    return norm(x, "norm")[2:]


def random_release(tower: nn.Module) -> dict[str, Tensor]:
    """Draw a release's state dict for a tower of timm with a gated MLP."""
    generator = torch.Generator().manual_seed(0)
    renamed = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3", "reg_token": "register_tokens"}
    state = {"mask_token": torch.zeros(1, 144)}
    for name, value in tower.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        shape = (1, value.shape[1] + 1, 144) if name == "pos_embed" else value.shape
        state[name] = 0.1 * torch.randn(shape, generator=generator) + name.endswith(("norm1.weight", "norm2.weight"))
    return state


def test_the_giant_gates_first_and_heads_may_be_of_any_width(folder):
    """From a file in the release's layout: heads of 72, the SiLU of the first half times the second."""
    state = random_release(build_image_tower("swiglu_tips", ""))
    np.savez(folder / "giant.npz", **{name: value.numpy() for name, value in state.items()})
    tower = build_image_tower("swiglu_tips", str(folder / "giant.npz"))
    text = tips.text_tower()
    text.config.hidden_size = 144
    image = torch.rand(3, 56, 56, generator=torch.Generator().manual_seed(1))
    found = TIPSEncoder(tower, text, (0, 0, 0), (255, 255, 255)).encode_patches(image[None])
    torch.testing.assert_close(found[0].flatten(1).T, plain_values(state, image, heads=2), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------- texts


def embed(encoder: TIPSEncoder, normalize_prompts: bool = True, ids: Tensor | None = None) -> Tensor:
    """Embed the golden prompts as words: features [K, C]."""
    ids = GOLDEN["text"]["ids"].long() if ids is None else ids
    embedder = TextEmbedder(encoder, lambda texts: ids.flatten(0, 1), normalize_prompts=normalize_prompts)
    return embedder([str(index) for index in range(len(ids))], ["{}"] * ids.shape[1])


def test_text_features_are_the_releases(encoder):
    golden = GOLDEN["text"]
    assert torch.equal(golden["ids"] == 0, golden["paddings"].bool())  # no word has the number of the padding
    features = encoder.encode_text(golden["ids"].long().flatten(0, 1)).unflatten(0, golden["ids"].shape[:2])
    torch.testing.assert_close(features, golden["prompt_features"], rtol=0, atol=5e-6)
    torch.testing.assert_close(embed(encoder), golden["class_vectors"], rtol=0, atol=5e-7)
    padded = F.pad(golden["ids"].long(), (0, 64 - golden["ids"].shape[2]))
    torch.testing.assert_close(embed(encoder, ids=padded), golden["class_vectors"], rtol=0, atol=5e-7)


def take_gelu(text: nn.Module) -> None:
    for layer in text.encoder.layers:
        layer.mlp.activation_fn = nn.GELU()


def forget_scale(text: nn.Module) -> None:
    text.embeddings.embed_scale = 1.0


def alternate_sines(text: nn.Module) -> None:
    sines, cosines = text.embeddings.position_embedding.weights.chunk(2, -1)
    text.embeddings.position_embedding.weights = torch.stack([sines, cosines], -1).flatten(-2)


def divide_by_half(text: nn.Module) -> None:
    """C / 2 in the exponent, not C / 2 - 1."""
    angles = torch.arange(64)[:, None] * 10000.0 ** (-torch.arange(64) / 64)
    text.embeddings.position_embedding.weights = torch.cat([angles.sin(), angles.cos()], -1)


def see_padding(text: nn.Module) -> None:
    forward = text.forward
    text.forward = lambda input_ids, attention_mask: forward(input_ids=input_ids)


@pytest.mark.parametrize("mistake", [take_gelu, forget_scale, alternate_sines, divide_by_half, see_padding])
def test_a_mistake_in_the_text_tower_is_seen(encoder, mistake):
    mistake(encoder.model["text"])
    assert (embed(encoder) - GOLDEN["text"]["class_vectors"]).abs().max() > 1e-4


def test_prompts_are_normalized_before_their_mean(encoder):
    assert (embed(encoder, normalize_prompts=False) - GOLDEN["text"]["class_vectors"]).abs().max() > 5e-6


def write_tokenizer(folder) -> str:
    vocab = {"<pad>": 0, "<unk>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5}
    transformers.Tipsv2Tokenizer(vocab=vocab, merges=[("▁", "a")], do_lower_case=False).save_pretrained(folder)
    return str(folder)


def test_the_tokenizer_lowers_texts_and_pads_them(tmp_path):
    tokenizer = TIPSTokenizer(find_tokenizer(write_tokenizer(tmp_path)))
    tokens = tokenizer(["A ab", "b", "", "a " * 99])
    assert tokens.shape == (4, 64) and tokens.dtype == torch.int64 and tokenizer.vocab_size == 6
    assert tokens[:3, :4].tolist() == [[5, 5, 4, 0], [2, 4, 0, 0], [0, 0, 0, 0]] and (tokens[3] == 5).all()
    assert find_tokenizer(str(tmp_path / "tokenizer.json")) == tmp_path


# ------------------------------------------------------------------------------------------------- windows


def slide(model: TIPSv2, size: tuple[int, int] | None = None) -> Tensor:
    height, width = size or GOLDEN["meta"]["image"]
    return model([{"image": GOLDEN["slide"]["image"], "height": height, "width": width}])[0]["sem_seg"]


def test_windows_are_averaged_as_in_the_release(model):
    every = GOLDEN["meta"]["every"]
    probabilities = slide(model)[:, ::every, ::every]
    torch.testing.assert_close(probabilities, GOLDEN["slide"]["probabilities_sampled"], rtol=0, atol=5e-7)
    labels = slide(model, GOLDEN["meta"]["original"]).argmax(0)
    assert torch.equal(labels, GOLDEN["slide"]["labels"].long())

    # Words come in parts
    image = {"image": GOLDEN["slide"]["image"]}
    features, _ = model.encode_crops(model.normalize_images([image["image"][:, :98, :98]]))
    text = GOLDEN["text"]["class_vectors"]
    features = model.prepare(features, text)
    parts = [model.predict_masks(features, text, slice(first, first + 2)) for first in range(0, 6, 2)]
    torch.testing.assert_close(torch.cat(parts, 1).sum(1), torch.ones(1, 98, 98))


def soften_before_enlarging(self: TIPSv2, features, text: Tensor, words: slice) -> Tensor:
    return self.clip_similarity(features.clip_features, text).softmax(1)[:, words]


def scale_by_100(self: TIPSv2, features, text: Tensor, words: slice) -> Tensor:
    return (100 * self._cosines(features, text)).softmax(1)[:, words]


def average_cosines(self: TIPSv2, features, text: Tensor, words: slice) -> Tensor:
    return self._cosines(features, text[words])


@pytest.mark.parametrize("mistake, pixels", [(soften_before_enlarging, 0), (scale_by_100, 50), (average_cosines, 1)])
def test_a_mistake_in_the_scores_is_seen(model, monkeypatch, mistake, pixels):
    monkeypatch.setattr(TIPSv2, "predict_masks", mistake)
    wrong = (slide(model, GOLDEN["meta"]["original"]).argmax(0) != GOLDEN["slide"]["labels"]).sum()
    every = GOLDEN["meta"]["every"]
    expected = GOLDEN["slide"]["probabilities_sampled"]
    assert wrong >= pixels and (slide(model)[:, ::every, ::every] - expected).abs().max() > 1e-6


def test_images_are_resized_as_by_pil():
    image, expected = (GOLDEN["resize"][name].permute(1, 2, 0).numpy() for name in ("image", "result"))
    assert np.array_equal(resize_bicubic(image, 98, 10**6), expected)
    assert not np.array_equal(resize_bilinear(image, 98, 133), expected)
    assert resize_bicubic(image, 98, 120).shape[:2] == (88, 120)  # the long side's limit
    assert resize_bicubic(image.transpose(1, 0, 2), 98, 10**6).shape[:2] == (133, 98)
    assert resize_bicubic(image, 0, 1) is image


def test_the_own_protocol_is_the_releases():
    cfg = load_config("tips/tipsv2.yaml")
    test, size = cfg.TEST.ZERO_SHOT, cfg.INPUT
    assert (size.MIN_SIZE_TEST, size.RESIZE_TEST) == (448, "pil_bicubic") and size.MAX_SIZE_TEST >= 10**5
    assert (test.CROP_SIZE, test.STRIDE, test.NORMALIZE_PROMPTS, test.TEMPLATES) == (448, 336, True, ["tcl"])
    assert (cfg.MODEL.TIPS.SCORES, test.LOGIT_SCALE, test.REFINE) == ("probability", 0, "none")
    assert cfg.MODEL.PIXEL_MEAN == [0.0, 0.0, 0.0] and cfg.MODEL.PIXEL_STD == [255.0, 255.0, 255.0]


# ------------------------------------------------------------------------------------------------- files


def tips_cfg(folder, *options: object):
    """Return the configuration of the golden model, from files in the release's layout."""
    towers = ["MODEL.TIPS.NAME", "golden_tips", "MODEL.TIPS.TEXT_HEADS", GOLDEN["meta"]["text_heads"]]
    files = ["MODEL.TIPS.PRETRAINED", tips.write_tower(folder, "vision")]
    files += ["MODEL.TIPS.TEXT", tips.write_tower(folder, "text_tower", temperature_contrastive=np.float32(0.005))]
    files += ["MODEL.TIPS.TOKENIZER", write_tokenizer(folder)]
    small = ["TEST.ZERO_SHOT.CROP_SIZE", 98, "TEST.ZERO_SHOT.STRIDE", 74, "MODEL.DEVICE", "cpu"]
    return load_config("tips/tipsv2.yaml", [*towers, *files, *small, *options])


def test_the_releases_files_give_its_figures(tmp_path):
    """And the hub's, which has both towers."""
    cfg = tips_cfg(tmp_path)
    TIPSv2.check_encoder(cfg)
    both = {f"vision_encoder.{name}": value.float() for name, value in GOLDEN["vision"].items()}
    both |= {f"text_encoder.{name}": value.float() for name, value in GOLDEN["text_tower"].items()}
    save_file(both, tmp_path / "model.safetensors")
    hub = str(tmp_path / "model.safetensors")
    for options in ((), ("MODEL.TIPS.PRETRAINED", hub, "MODEL.TIPS.TEXT", hub)):
        model = TIPSv2(tips_cfg(tmp_path, *options)).eval()
        model.set_text_embeddings(embed(model.clip))
        assert torch.equal(slide(model, GOLDEN["meta"]["original"]).argmax(0), GOLDEN["slide"]["labels"].long())
        assert model.text_features(["a", "b"]).shape == (2, 128)


@pytest.mark.fault(
    "TIPSv2: a file without its tower, towers of two models, a wrong tokenizer or none, no such heads", "one error each"
)
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("PRETRAINED", "tips_text_tower.npz", "PRETRAINED: .* has no image tower of TIPSv2; expected a file of timm"),
        ("TEXT", "tips_vision.npz", "TEXT: .* has no text tower of TIPSv2: expected the weights token_embedding"),
        ("PRETRAINED", "none.npz", "PRETRAINED: there is no file|PRETRAINED: .*none.npz"),
        ("NAME", "test_vit", "PRETRAINED: .* does not fit MODEL.TIPS.NAME 'test_vit'"),
        ("NAME", "resnet18", "MODEL.TIPS.NAME is 'resnet18', a ResNet; expected a VisionTransformer"),
        ("NAME", "tipsv3", "which timm .* does not have"),
        ("TEXT_HEADS", 5, "MODEL.TIPS.TEXT_HEADS is 5; expected a divisor of the text tower's width, 128"),
        ("TOKENIZER", "", "MODEL.TIPS.TOKENIZER is a tokenizer of 49,408 tokens; expected one of at most 160"),
        ("TOKENIZER", "empty", "MODEL.TIPS.TOKENIZER: .*empty' has neither tokenizer.json nor tokenizer.model"),
        ("TOKENIZER", "damaged", "MODEL.TIPS.TOKENIZER: .*damaged' has no tokenizer that transformers reads"),
        ("TOKENIZER", "none/tokenizer.model", "MODEL.TIPS.TOKENIZER: .*none/tokenizer.model"),
        ("TOKENIZER", "no/model", "MODEL.TIPS.TOKENIZER: there is no folder 'no/model'.*give the release's tokenizer"),
        ("SCORES", "mask", "MODEL.TIPS.SCORES is 'mask'; expected one of probability, cosine"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, monkeypatch, key, value, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/tokenizer.json").write_text("{")
    cfg = tips_cfg(tmp_path)
    is_file = isinstance(value, str) and value.partition("/")[0] in {path.name for path in tmp_path.iterdir()} | {
        "none.npz",
        "none",
    }
    cfg.MODEL.TIPS[key] = str(tmp_path / value) if is_file and value else value
    with pytest.raises((ValueError, OSError), match=message):
        TIPSv2.check_encoder(cfg)
        TIPSv2(cfg)


@pytest.mark.fault("TIPSv2: an image tower and a text tower of different widths", "an error says both widths")
def test_towers_of_two_models_are_refused(folder):
    with pytest.raises(ValueError, match="NAME gives features of 144 numbers, but MODEL.TIPS.TEXT of 128"):
        TIPSEncoder(build_image_tower("swiglu_tips", ""), tips.text_tower(), (0, 0, 0), (255, 255, 255))


@pytest.mark.fault("TIPSv2: a text tower with a weight of another shape, or without one", "an error names the weight")
def test_a_text_tower_is_whole():
    state = dict(GOLDEN["text_tower"])
    del state["ln_final.bias"]
    with pytest.raises(ValueError, match="'file' is no whole text tower .*final_layer_norm.bias: the file has nothing"):
        load_text_tower(state, 4, "file")


@pytest.mark.fault("TIPSv2: a softmax twice, by its scores and by TEST.ZERO_SHOT.LOGIT_SCALE", "refused by the keys")
def test_there_is_one_softmax(encoder):
    with pytest.raises(ValueError, match="LOGIT_SCALE is 40.0; expected 0: MODEL.TIPS.SCORES probability"):
        tips.build_model(encoder, logit_scale=40.0)
    tips.build_model(encoder, logit_scale=40.0, scores="cosine")


@pytest.mark.fault("a .npz file of weights with pickled objects, or cut off", "refused; nothing of it is run")
@pytest.mark.parametrize("is_cut", [False, True])
def test_files_of_numpy_carry_no_code(tmp_path, is_cut):
    path = tmp_path / "weights.npz"
    np.savez(path, mask_token=np.array([partial(print, "run")]) if not is_cut else np.zeros(999))
    if is_cut:
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match="MODEL.TIPS.PRETRAINED: .*weights.npz"):
        build_image_tower("golden_tips", str(path))


def test_weights_are_those_that_features_depend_on(encoder):
    weights = encoder.text_weights()
    assert weights and all(name.startswith("text.") for name in weights)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    ids = GOLDEN["text"]["ids"].long()[0]
    before = normalize(encoder.encode_text(ids), 1)
    weights["text.final_layer_norm.bias"].add_(1)
    assert not torch.equal(normalize(encoder.encode_text(ids), 1), before)
