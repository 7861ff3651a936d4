"""Vision models of timm: normalization, windows of any shape, weights from files."""

import pytest
import timm
import torch

from tcl_d2.modeling import FrozenCLIP, build_clip
from tcl_d2.modeling.encoders.vision import VisionEncoder, build_vision_model, model_normalization

KEY = "MODEL.RECO.ENCODER"
VISION = "test_vit"  # of timm: 3 blocks, 64 channels, patches of 16 pixels


@pytest.mark.parametrize("name", [VISION, "deit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_vision_model_sees_the_window_in_its_normalization(name):
    """Features are those of timm's model on the image as timm itself prepares it, whatever the CLIP's mean is."""
    vision = build_vision_model(KEY, name, "")
    encoder = VisionEncoder(vision, pixel_mean=(122.771, 116.746, 104.094), pixel_std=(68.501, 66.632, 70.323))
    side = vision.patch_embed.img_size[0]
    pixels = torch.rand(1, 3, side, side)

    mean, std = (torch.tensor(vision.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = vision.forward_features((pixels - mean) / std)[:, vision.num_prefix_tokens :]
    clip_mean, clip_std = torch.tensor([122.771, 116.746, 104.094]), torch.tensor([68.501, 66.632, 70.323])
    features = encoder((255 * pixels - clip_mean.view(3, 1, 1)) / clip_std.view(3, 1, 1))
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-4)


def test_normalization_is_that_of_the_weights_tag():
    """One architecture has weights of several trainings."""
    for name, mean in (("vit_tiny_patch16_224", 127.5), ("deit_tiny_patch16_224", 123.675)):
        assert model_normalization(build_vision_model(KEY, name, ""))[0][0] == pytest.approx(mean)
    names = {"vit_base_patch16_224.mae": 123.675, "vit_base_patch16_224.augreg_in1k": 127.5}
    with torch.device("meta"):
        for name, mean in names.items():
            assert model_normalization(build_vision_model(KEY, name, ""))[0][0] == pytest.approx(mean)


def test_digest_tells_normalizations_apart():
    """References that were made under another one are not taken from a cache."""
    vision = build_vision_model(KEY, VISION, "")
    first, same = VisionEncoder(vision).digest(), VisionEncoder(vision).digest()
    assert first == same != VisionEncoder(vision, pixel_mean=(127.5, 127.5, 127.5)).digest()


@pytest.mark.parametrize(
    "name, source", [("test_vit2", "timm"), ("test_vit2", "file"), ("test_vit3", "timm"), ("test_vit4", "file")]
)
def test_trained_norm_behind_the_pooling_is_the_final_norm(tmp_path, monkeypatch, name, source):
    """Of the tokens, where timm has it for their mean; the attention of a pooling is left out."""
    trained = timm.create_model(name)
    for norm in (trained.norm, trained.fc_norm):
        for parameter in norm.parameters():
            torch.nn.init.uniform_(parameter)
    torch.save(trained.state_dict(), tmp_path / "vision.pth")
    load = lambda *arguments, **options: dict(trained.state_dict())  # noqa: E731
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    vision = build_vision_model(KEY, name, "timm" if source == "timm" else str(tmp_path / "vision.pth"))

    images = torch.randn(1, 3, 160, 160)
    expected = trained.eval().fc_norm(trained.forward_features(images))[:, trained.num_prefix_tokens :]
    assert torch.equal(vision.eval()(images)[:, vision.num_prefix_tokens :], expected)


def test_distilled_model_gives_the_tokens_of_patches():
    """Without the two tokens before them: of the class and of the distillation."""
    vision = build_vision_model(KEY, "deit_tiny_distilled_patch16_224", "")
    images = torch.rand(1, 3, 224, 224)
    encoder = VisionEncoder(vision)
    expected = vision.forward_features(images)[:, 2:]
    torch.testing.assert_close(encoder(images).flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-4)


def test_vision_model_takes_windows_of_any_shape():
    encoder = VisionEncoder(build_vision_model(KEY, VISION, ""))
    assert encoder(torch.rand(2, 3, 112, 168)).shape[2:] == (7, 10)


def test_weights_from_the_checkpoint_of_a_classifier(tmp_path):
    torch.manual_seed(0)
    vision = build_vision_model(KEY, VISION, "")
    classifier = {"head.weight": torch.zeros(10, 64), "head_dist.bias": torch.zeros(10)}
    torch.save({"model": {**vision.state_dict(), **classifier}, "epoch": 3}, tmp_path / "vision.pth")
    torch.manual_seed(1)
    loaded = build_vision_model(KEY, VISION, str(tmp_path / "vision.pth"))
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in vision.state_dict().items())


@pytest.mark.fault("a vision model that timm does not have, or without a token a patch", "it is named")
@pytest.mark.parametrize(
    "name, message",
    [
        ("vit_none", "does not have"),
        ("test_resnet", "a ResNet; expected"),
        ("vit_tiny_r_s16_p8_224", "a VisionTransformer on the features of a convolutional network"),
        ("vit_small_resnet26d_224", "a VisionTransformer on the features of a convolutional network"),
        ("vitamin_small_224", "a VisionTransformer on the features of a convolutional network"),
    ],
)
def test_unusable_vision_models_are_named(name, message):
    with pytest.raises(ValueError, match=f"{KEY}.NAME is '{name}'.*{message}"):
        build_vision_model(KEY, name, "")


@pytest.mark.fault("a vision model of which timm has no weights", "it is named")
def test_vision_models_without_weights_are_named():
    with pytest.raises(ValueError, match=f"{KEY}.PRETRAINED is 'timm'.*no weights of 'test_vit4'"):
        build_vision_model(KEY, "test_vit4", "timm")


@pytest.mark.fault("a vision model that is none", "it is named before its weights are downloaded")
def test_unusable_vision_models_are_named_before_a_download(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *arguments, **options: pytest.fail("download"))
    with pytest.raises(ValueError, match=f"{KEY}.NAME is 'resnet18', a ResNet"):
        build_vision_model(KEY, "resnet18", "timm")


@pytest.mark.fault("weights of another vision model", "how many do not fit, and some of them")
@pytest.mark.parametrize("name", ["test_vit2", "test_vit3", "wide"])
def test_weights_of_another_vision_model_are_refused(tmp_path, name):
    other = timm.create_model(VISION if name == "wide" else name, num_classes=0, mlp_ratio=4.0)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="PRETRAINED: '.*other.pth' does not fit .*NAME 'test_vit' .*the file has"):
        build_vision_model(KEY, VISION, str(tmp_path / "other.pth"))


@pytest.mark.fault("no file, or no weights, for a vision model", "an error that names the key and the file")
def test_unreadable_weights_of_the_vision_model_are_named(tmp_path):
    (tmp_path / "text.pth").write_text("brick\nlava\n")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("missing.pth", "text.pth", "list.pth"):
        with pytest.raises((OSError, ValueError), match=f"{KEY}.PRETRAINED: .*{name}'"):
            build_vision_model(KEY, VISION, str(tmp_path / name))


def test_checkpoints_do_not_hold_the_vision_model():
    """It comes by its name; but it moves with the module."""
    encoder = VisionEncoder(build_vision_model(KEY, VISION, ""))
    assert not encoder.state_dict() and encoder.double().model.pos_embed.dtype == torch.float64


@torch.no_grad()
def test_the_small_worlds_image_tower_is_that_of_its_clip():
    """As a model of timm, with the CLIP's own file of weights."""
    name, weights = "tcl_d2://shapes_clip/model.json", "tcl_d2://shapes_clip/weights.safetensors"
    clip, vision = FrozenCLIP(build_clip(name, weights)), build_vision_model(KEY, "shapes_clip_vit", weights)
    images = torch.randn(2, 3, 48, 48)
    expected = clip.visual.ln_post(clip.forward_blocks(images, len(clip.blocks)))
    torch.testing.assert_close(VisionEncoder(vision).tokens(images), expected, rtol=0, atol=1e-5)


def test_random_weights_are_the_same_each_time():
    """What is trained on them needs them again, in another process too; the caller's random numbers go on."""
    torch.manual_seed(1)
    first = build_vision_model(KEY, VISION, "")
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(build_vision_model(KEY, VISION, "").pos_embed, first.pos_embed)
