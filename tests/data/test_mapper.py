"""ImageTextDatasetMapper: images and captions of all sorts, and the augmentation that the config asks for."""

import io
import pickle
import random

import numpy as np
import open_clip
import pytest
import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from PIL import Image

from tcl_d2.data import ImageTextDatasetMapper
from tcl_d2.utils import images
from tcl_d2.utils.images import BrokenSample, read_image

TOKENIZER = open_clip.get_tokenizer("ViT-B-32")
PLAIN = {"flip_prob": 0.0, "rand_augment": "", "erasing_prob": 0.0}


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(image: bytes, *captions) -> dict:
    return {"image_bytes": image, "captions": list(captions) or ["a cat"], "key": "shard.tar/007"}


def test_eval_variant_is_the_exact_center_crop():
    image = picture(60, 40)
    out = ImageTextDatasetMapper(TOKENIZER, is_train=False, size=40)(sample(encode(image)))
    expected = np.asarray(image)[:, 10:50].transpose(2, 0, 1)
    torch.testing.assert_close(out["image"], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-3)
    assert torch.equal(out["tokens"], TOKENIZER(["a cat"])[0])


def test_training_crop_without_color_changes_stays_in_range():
    out = ImageTextDatasetMapper(TOKENIZER, size=32, **PLAIN)(sample(encode(picture())))
    assert out["image"].shape == (3, 32, 32) and out["image"].dtype == torch.float32
    assert out["image"].min() >= -1e-3 and out["image"].max() <= 255 + 1e-3


def test_config_keys_take_effect():
    data = sample(encode(picture()))
    whole = {"crop_scale": (1, 1), "crop_ratio": (1.5, 1.5)}
    options = {"size": 40, **PLAIN, **whole}
    base = ImageTextDatasetMapper(TOKENIZER, **options)(data)["image"]
    again = ImageTextDatasetMapper(TOKENIZER, **options)(data)["image"]
    assert torch.equal(base, again)  # nothing random is left
    flipped = ImageTextDatasetMapper(TOKENIZER, **{**options, "flip_prob": 1.0})(data)["image"]
    torch.testing.assert_close(flipped, base.flip(-1), rtol=0, atol=1e-3)
    torch.manual_seed(0)
    random.seed(0)
    erased = ImageTextDatasetMapper(TOKENIZER, **{**options, "erasing_prob": 1.0})(data)["image"]
    assert 0.01 < (erased != base).float().mean() < 0.5  # a rectangle, not the image
    mapper = ImageTextDatasetMapper(TOKENIZER, **{**options, "rand_augment": "rand-m9-n2"})
    assert any(not torch.equal(mapper(data)["image"], base) for _ in range(8))


def test_erased_pixels_are_noise_in_normalized_values():
    """As timm's pixel mode in the official release: mean = the mean color, deviation = the normalization's."""
    torch.manual_seed(0)
    random.seed(0)
    magenta = Image.new("RGB", (64, 64), (255, 0, 255))
    mapper = ImageTextDatasetMapper(TOKENIZER, size=64, **{**PLAIN, "erasing_prob": 1.0})
    outs = torch.stack([mapper(sample(encode(magenta)))["image"] for _ in range(20)])
    noise = outs.permute(1, 0, 2, 3)[1][outs[:, 1].abs() > 1e-3]  # green was 0
    assert noise.mean().item() == pytest.approx(116.28, abs=2)
    assert noise.std().item() == pytest.approx(57.12, abs=2)


def test_one_of_several_captions_is_drawn():
    mapper = ImageTextDatasetMapper(TOKENIZER, size=16, **PLAIN)
    data = sample(encode(picture()), "one", "two", b"three")
    random.seed(0)
    assert {mapper(data)["caption"] for _ in range(60)} == {"one", "two", "three"}
    assert ImageTextDatasetMapper(TOKENIZER, is_train=False, size=16)(data)["caption"] == "one"


def test_very_long_caption_is_truncated():
    out = ImageTextDatasetMapper(TOKENIZER, size=16, **PLAIN)(sample(encode(picture()), "cat " * 2500))
    assert out["tokens"].shape == (77,) and out["tokens"][-1] == TOKENIZER.eot_token_id


@pytest.mark.fault("augmentation settings out of range, an unknown RandAugment policy", "refused, with the config key")
@pytest.mark.parametrize(
    "key, value",
    [
        ("SIZE", 0),
        ("FLIP_PROB", 1.5),
        ("FLIP_PROB", float("nan")),
        ("ERASING_PROB", -0.1),
        ("CROP_SCALE", [1.0, 0.5]),
        ("CROP_SCALE", [0.0, 1.0]),
        ("CROP_SCALE", [0.5]),
        ("CROP_RATIO", [0.5, float("inf")]),
        ("CROP_RATIO", ["wide", "high"]),
        ("RAND_AUGMENT", "strong"),
        ("RAND_AUGMENT", "rand-m9-strong1"),
        ("RAND_AUGMENT", "rand-m9-tweigths"),
        ("RAND_AUGMENT", "rand-m9-mstd-inc1"),
    ],
)
def test_settings_out_of_range_are_refused(key, value):
    with pytest.raises(ValueError, match=f"INPUT.IMAGE_TEXT.{key} is .*expected"):
        ImageTextDatasetMapper(TOKENIZER, **{key.lower(): value})


@pytest.mark.parametrize(
    "captions, reason",
    [
        ([], "no caption"),
        ([""], "empty caption"),
        ([" \n"], "empty caption"),
        ([b"\xff\xfe\xfa"], "caption is no UTF-8"),
    ],
)
def test_unusable_captions(captions, reason):
    data = {**sample(encode(picture())), "captions": captions}
    with pytest.raises(BrokenSample, match=f"{reason}.*shard.tar/007"):
        ImageTextDatasetMapper(TOKENIZER, size=16)(data)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "YCbCr"])
def test_images_of_any_mode_become_rgb(mode):
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = read_image(encode(picture().convert(mode), format), "x")
    assert image.mode == "RGB" and image.size == (60, 40)


def test_16_bit_image_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = np.asarray(read_image(encode(Image.fromarray(ramp)), "x"))
    np.testing.assert_allclose(image[..., 0].ravel(), np.arange(256), atol=1)


def test_1x1_image():
    out = ImageTextDatasetMapper(TOKENIZER, size=16)(sample(encode(Image.new("RGB", (1, 1)))))
    assert out["image"].shape == (3, 16, 16)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert read_image(encode(picture(60, 40), "JPEG", exif=exif), "x").size == (40, 60)


@pytest.mark.fault("empty, cut and wrong image files", "counted as unreadable")
@pytest.mark.parametrize("data", [b"", b"<html>", encode(picture(), "JPEG")[:700], encode(picture())[:-2000]])
def test_broken_images(data):
    with pytest.raises(BrokenSample, match="unreadable image: x"):
        read_image(data, "x")


def test_an_error_goes_from_a_process_to_another():
    error = BrokenSample("unreadable image", "x", OSError("cut"))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason, copy.detail) == ("unreadable image: x (cut)", error.reason, "cut")


def test_missing_file():
    with pytest.raises(BrokenSample, match="unreadable image: /none.jpg"):
        ImageTextDatasetMapper(TOKENIZER, size=16)({"file_name": "/none.jpg", "captions": ["a"]})


@pytest.mark.fault("a decompression bomb", "refused before it is decoded, counted")
def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(BrokenSample, match="image too large"):
        read_image(encode(picture()), "x")


@pytest.mark.fault("a pair whose picture has not the height and width of its row", "left out, counted")
def test_an_image_has_the_size_of_its_row():
    data = {**sample(encode(picture(60, 40)), "one"), "height": 40, "width": 60}
    mapper = ImageTextDatasetMapper(TOKENIZER, size=16)
    assert (mapper(data)["height"], mapper(data)["width"]) == (40, 60)
    with pytest.raises(BrokenSample, match=r"another size than the row says: .*got \(60, 40\), expect \(40, 60\)"):
        mapper({**data, "height": 60, "width": 40})


def test_keys_of_the_pair_are_kept_without_the_bytes():
    data = {**sample(encode(picture()), "one", "two"), "image_id": 7, "split": "train"}
    out = ImageTextDatasetMapper(TOKENIZER, size=16, **PLAIN)(data)
    assert data.keys() - out.keys() == {"image_bytes"}
    assert all(out[name] == data[name] for name in ("captions", "image_id", "split", "key"))
    assert (out["height"], out["width"]) == (16, 16)


@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_alone_serves_detectron2s_loaders(shapes_cfg, tmp_path, is_train):
    """As its own DatasetMapper does: called with a configuration, over rows with a caption each."""
    picture().save(tmp_path / "0.png")
    rows = [{"file_name": str(tmp_path / "0.png"), "captions": ["a cat"], "image_id": i} for i in range(8)]
    mapper = ImageTextDatasetMapper(shapes_cfg, is_train)
    tested = [batch[0]["image_id"] for batch in build_detection_test_loader(rows, mapper=mapper)]
    assert tested == list(range(8))

    loader = build_detection_train_loader(shapes_cfg, mapper=mapper, dataset=rows)
    batch = next(iter(loader))
    assert [pair["image"].shape for pair in batch] == 4 * [(3, 48, 48)]
    assert {pair["caption"] for pair in batch} == {"a cat"} and all(pair["file_name"] for pair in batch)
