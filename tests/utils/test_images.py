"""One reader of pictures: files, PIL images, arrays and benchmark images become the same pixels."""

import os

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from tcl_d2.data.benchmarks import BenchmarkMapper
from tcl_d2.data.labels import read_label
from tcl_d2.modeling.reco.index import ImageRecord
from tcl_d2.utils import images
from tcl_d2.utils.images import as_array, is_leftover

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90 degrees


def benchmark_image(path) -> np.ndarray:
    """The pixels that the model gets, RGB [H, W, 3]."""
    return BenchmarkMapper(short=0, long=2048)({"file_name": str(path)})["image"].permute(1, 2, 0).numpy()


@pytest.mark.fault("a named pipe or a device in the place of an image or a label", "an error names it; nobody waits")
@pytest.mark.parametrize("read", [as_array, read_label, lambda path: ImageRecord(path).read()])
def test_what_is_no_file_is_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises((ValueError, OSError), match=f"{name}.*no file, but"):
            read(str(tmp_path / name))


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
    assert images.image_size(str(path)) == (40, 60)


@pytest.mark.fault("pictures that EXIF turns, as file and as PIL image", "upright, whatever way they come")
def test_pil_images_are_turned_as_files_are(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path, exif=TURNED)
    with Image.open(path) as image:
        np.testing.assert_array_equal(as_array(image), np.rot90(PIXELS, -1))
    np.testing.assert_array_equal(as_array(str(path)), np.rot90(PIXELS, -1))
    assert images.image_size(str(path)) == (60, 40)


@pytest.mark.fault("16-bit gray pictures", "scaled to 8 bits, not clipped to white, whatever way they come")
def test_16_bit_gray_is_scaled_in_all_ways(tmp_path):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    path = tmp_path / "a.png"
    Image.fromarray(ramp).save(path)
    for image in (path, Image.open(path), ramp):
        np.testing.assert_array_equal(as_array(image), expected)
    np.testing.assert_array_equal(benchmark_image(path), expected)


@pytest.mark.fault("a TIFF that EXIF turns", "turned once")
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_deflate"}])
def test_tiffs_are_turned_once(tmp_path, options):
    """PIL itself turns them when it decodes them, as no other format."""
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", exif=TURNED, **options)
    np.testing.assert_array_equal(as_array(tmp_path / "a.tif"), np.rot90(PIXELS, -1))
    assert images.image_size(str(tmp_path / "a.tif")) == (60, 40)
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(as_array(image), np.rot90(PIXELS, -1))


@pytest.mark.fault("pictures of 16 or 32 bits that use 8 or 12 of them", "scaled by these, with a warning; not black")
@pytest.mark.parametrize("white", [255, 4095])
@pytest.mark.parametrize("name, dtype", [("a.tif", np.int32), ("a.tif", np.uint16), ("a.png", np.uint16)])
def test_pictures_of_unused_bits_are_not_black(tmp_path, monkeypatch, caplog, name, dtype, white):
    monkeypatch.setattr(images, "_guessed", [])
    ramp = np.linspace(0, white, 256).round().reshape(16, 16)
    Image.fromarray(ramp.astype(dtype)).save(tmp_path / name)
    expected = np.arange(256).reshape(16, 16, 1)
    assert np.abs(as_array(tmp_path / name).astype(int) - expected).max() == 0
    assert f"{tmp_path / name} is stored with more than 8 bits, but no value above {white}" in caplog.text


def test_full_and_black_pictures_of_many_bits_need_no_warning(tmp_path, caplog):
    for white, dtype in ((65535, np.int32), (0, np.int32), (0, np.uint16)):
        Image.fromarray(np.full((4, 5), white, dtype)).save(tmp_path / "a.tif")
        assert (as_array(tmp_path / "a.tif") == white // 257).all()
    assert not caplog.text


@pytest.mark.fault("a color picture of 16 bits that uses 12 of them", "a warning that it is almost black")
def test_dark_colors_of_16_bits_are_told(tmp_path, monkeypatch, caplog):
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    monkeypatch.setattr(images, "_guessed", [])
    cv2.imwrite(str(tmp_path / "a.png"), PIXELS.astype(np.uint16) * 16)
    assert as_array(tmp_path / "a.png").max() == 15
    assert f"{tmp_path / 'a.png'} is stored with 16 bits a color" in caplog.text


@pytest.mark.fault("a picture of integers beyond 16 bits", "refused, not taken for black or white")
@pytest.mark.parametrize("value", [-1, 65536])
def test_pictures_beyond_16_bits_are_refused(tmp_path, value):
    Image.fromarray(np.full((4, 5), value, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"a.tif.* {value} to {value}, of which nothing says what is white"):
        as_array(tmp_path / "a.tif")


@pytest.mark.parametrize("path", ["._a.jpg", "x/._a.jpg", "__MACOSX/x/a.jpg", "x/@eaDir/a.jpg", "__MACOSX"])
def test_leftovers_of_other_systems_are_known(path):
    assert is_leftover(path)


@pytest.mark.parametrize("path", ["a.jpg", "./x/a.jpg", ".a.jpg", "x/_a._b.jpg", "../a.jpg", "__MACOSX.jpg"])
def test_images_are_no_leftovers(path):
    assert not is_leftover(path)


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
