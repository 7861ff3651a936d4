"""One reader of pictures: files, PIL images, arrays and benchmark images become the same pixels."""

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from tcl_d2.data.benchmark_mapper import BenchmarkMapper
from tcl_d2.utils.images import as_array

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90 degrees


def benchmark_image(path) -> np.ndarray:
    """The pixels that the model gets, RGB [H, W, 3]."""
    return BenchmarkMapper(short=0, long=2048)({"file_name": str(path)})["image"].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix, options", [("jpg", {}), ("jpg", {"exif": TURNED}), ("png", {"exif": TURNED})])
def test_8_bit_benchmark_images_are_detectron2s(tmp_path, suffix, options):
    """Bit for bit, as the published figures were read."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).save(path, **options)
    theirs = detectron2_read_image(str(path), format="RGB")
    np.testing.assert_array_equal(benchmark_image(path), theirs)
    np.testing.assert_array_equal(as_array(path), theirs)


@pytest.mark.fault("damaged EXIF data", "the picture is read without it")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_spoils_no_picture(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff damaged")
    assert as_array(path).shape == benchmark_image(path).shape == (40, 60, 3)


@pytest.mark.fault("pictures that EXIF turns, as file and as PIL image", "upright, whatever way they come")
def test_pil_images_are_turned_as_files_are(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path, exif=TURNED)
    with Image.open(path) as image:
        np.testing.assert_array_equal(as_array(image), np.rot90(PIXELS, -1))
    np.testing.assert_array_equal(as_array(str(path)), np.rot90(PIXELS, -1))


@pytest.mark.fault("16-bit gray pictures", "scaled to 8 bits, not clipped to white, whatever way they come")
def test_16_bit_gray_is_scaled_in_all_ways(tmp_path):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    path = tmp_path / "a.png"
    Image.fromarray(ramp).save(path)
    for image in (path, Image.open(path), ramp):
        np.testing.assert_array_equal(as_array(image), expected)
    np.testing.assert_array_equal(benchmark_image(path), expected)


@pytest.mark.fault("a picture of floats", "refused, not taken for black")
def test_pictures_of_floats_are_refused(tmp_path):
    image = Image.fromarray(np.full((4, 5), 0.9, np.float32))
    image.save(tmp_path / "a.tif")
    for source in (image, tmp_path / "a.tif"):
        with pytest.raises(ValueError, match="an image of floats, of which nothing says what is white"):
            as_array(source)


def test_gray_arrays_of_8_bits_become_rgb():
    np.testing.assert_array_equal(as_array(PIXELS[..., 0]), PIXELS[..., [0, 0, 0]])
    assert as_array(PIXELS) is PIXELS


@pytest.mark.fault("empty arrays, arrays of other types and shapes", "refused: what was given, what is expected")
@pytest.mark.parametrize(
    "image, given",
    [
        (np.zeros((0, 5, 3), np.uint8), r"uint8 \[0, 5, 3\]"),
        (np.zeros((0, 5), np.uint16), r"uint16 \[0, 5\]"),
        (np.zeros((5, 5, 3)), r"float64 \[5, 5, 3\]"),
        (np.zeros((3, 5, 5), np.uint8), r"uint8 \[3, 5, 5\]"),
        (np.zeros((5, 5, 3), np.uint16), r"uint16 \[5, 5, 3\]"),
        (Image.new("RGB", (0, 5)), "an image of 0 x 5 pixels"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_picture_is_named(image, given):
    with pytest.raises(ValueError, match=rf"RGB array uint8 \[H, W, 3\].* not {given}"):
        as_array(image)
