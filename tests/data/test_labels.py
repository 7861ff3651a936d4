"""The one reader of label files: a file's own values, whatever its mode, turned as its image is, or one named error."""

import struct
import zlib

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tcl_d2.data import check_datasets, register_benchmark
from tcl_d2.data.labels import LabelMapper, read_label
from tcl_d2.evaluation import ZeroShotSemSegEvaluator
from tcl_d2.evaluation.progress import SkippedImages

TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90 degrees


def values(largest: int, dtype: type = np.uint8) -> np.ndarray:
    """Every value up to the largest one, or many of them, [8, 16]."""
    return np.linspace(0, largest, 8 * 16).round().astype(dtype).reshape(8, 16)


def write_gray_png(path, label: np.ndarray, bits: int) -> None:
    """Write a gray PNG of few bits a pixel, as libpng, MATLAB and GDAL do, and Pillow does not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = [int("".join(f"{value:0{bits}b}" for value in row), 2) for row in label.tolist()]
    data = b"".join(b"\0" + row.to_bytes(label.shape[1] * bits // 8, "big") for row in rows)
    header = struct.pack(">IIBBBBB", label.shape[1], label.shape[0], bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def write_palette(path, label: np.ndarray, **options) -> None:
    picture = Image.fromarray(label)
    picture.putpalette([value for k in range(256) for value in (255 - k, k // 2, 7)])
    picture.save(path, **options)


def write_pgm(path, label: np.ndarray, largest: int) -> None:
    content = label.astype(">u2" if largest > 255 else np.uint8).tobytes()
    path.write_bytes(b"P5 %d %d %d\n" % (*label.shape[::-1], largest) + content)


@pytest.mark.fault("labels of 1 to 32 bits, of a palette or gray: PNG, TIFF, PGM", "read as they are written")
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_pngs_of_few_bits_have_their_own_values(tmp_path, bits):
    label = values(2**bits - 1)
    write_gray_png(tmp_path / "a.png", label, bits)
    read = read_label(str(tmp_path / "a.png"))
    assert read.dtype.kind in "ui" and np.array_equal(read, label)


@pytest.mark.fault("labels of 1 to 32 bits, of a palette or gray: PNG, TIFF, PGM", "read as they are written")
@pytest.mark.parametrize(
    "name, label, write",
    [
        ("a.png", values(1, bool), lambda path, label: Image.fromarray(label).save(path)),
        ("a.tif", values(1, bool), lambda path, label: Image.fromarray(label).save(path)),
        ("a.png", values(255), lambda path, label: Image.fromarray(label).save(path)),
        ("a.png", values(255), write_palette),
        ("a.png", values(3), lambda path, label: write_palette(path, label, bits=2)),
        ("a.bmp", values(200), lambda path, label: Image.fromarray(label).save(path)),
        ("a.png", values(65535, np.uint16), lambda path, label: Image.fromarray(label).save(path)),
        ("a.tif", values(65535, np.uint16), lambda path, label: Image.fromarray(label).save(path)),
        ("a.tif", values(300, np.int32), lambda path, label: Image.fromarray(label).save(path)),
        ("a.tif", values(300, np.dtype(">u2")), lambda path, label: Image.fromarray(label).save(path)),
        ("a.pgm", values(20), lambda path, label: write_pgm(path, label, 20)),
        ("a.pgm", values(1000, np.uint16), lambda path, label: write_pgm(path, label, 1000)),
    ],
)
def test_files_have_their_own_values(tmp_path, name, label, write):
    write(tmp_path / name, label)
    read = read_label(str(tmp_path / name))
    assert read.dtype.kind in "ui" and np.array_equal(read, label)


@pytest.mark.fault("a label that EXIF turns", "turned as its image is")
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_labels_are_turned_as_images_are(tmp_path, name, dtype):
    Image.fromarray(values(1, dtype)).save(tmp_path / name, exif=TURNED)
    assert np.array_equal(read_label(str(tmp_path / name)), np.rot90(values(1), -1))


@pytest.mark.fault("labels of floats, of several channels, with inverted gray, as JPEG", "one error names the file")
@pytest.mark.parametrize(
    "name, picture, options, message",
    [
        ("a.tif", Image.fromarray(np.ones((6, 8), np.float32)), {}, "floats"),
        ("a.png", Image.new("RGB", (8, 6)), {}, "3 channels"),
        ("a.png", Image.new("LA", (8, 6)), {}, "2 channels"),
        ("a.tif", Image.new("L", (8, 6), 1), {"tiffinfo": {262: 0}}, "inverted"),
        ("a.pbm", Image.new("1", (8, 6), 1), {}, "inverted"),
        ("a.png", Image.new("L", (8, 6), 1), {"format": "JPEG"}, "JPEG"),
    ],
)
def test_what_is_no_label_is_named(tmp_path, name, picture, options, message):
    picture.save(tmp_path / name, **options)
    with pytest.raises(OSError, match=f"{name}.*{message}"):
        read_label(str(tmp_path / name))


# ------------------------------------------------------------------------------------- from a benchmark's folder


@pytest.fixture
def two_classes(tmp_path):
    """A benchmark of two classes with one image of 8 x 16 pixels; a function registers it with these options."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (16, 8)).save(tmp_path / "images/a.png")
    Image.fromarray(values(1)).save(tmp_path / "labels/a.png")

    def register(**options) -> None:
        register_benchmark("t_two", str(tmp_path / "images"), str(tmp_path / "labels"), ("grass", "brick"), **options)

    yield register
    DatasetCatalog.remove("t_two")
    MetadataCatalog.remove("t_two")


@pytest.mark.fault("a label of floats, with SKIP_BROKEN", "left out and counted")
def test_labels_that_cannot_be_read_are_counted(two_classes, tmp_path):
    two_classes()
    (row,) = DatasetCatalog.get("t_two")
    Image.fromarray(np.ones((8, 16), np.float32)).save(row["sem_seg_file_name"], format="TIFF")
    evaluator, skipped = ZeroShotSemSegEvaluator("t_two"), SkippedImages()
    evaluator.attach(None, skipped)
    evaluator.process([row], [{"sem_seg_labels": torch.zeros(8, 16, dtype=torch.int64)}])
    assert skipped.total() == 1


@pytest.mark.fault("a label_map with a value that no file of 16 bits has", "an error at the start names it")
@pytest.mark.parametrize("value", [70000, -1, "1", 1.5])
def test_label_maps_of_impossible_values_are_refused_at_the_start(two_classes, value):
    two_classes(label_map={0: 0, value: 1})
    for use in (lambda: check_datasets(test=["t_two"]), lambda: LabelMapper.of("t_two")):
        with pytest.raises(ValueError, match=f"{value!r}.*0..65535"):
            use()
