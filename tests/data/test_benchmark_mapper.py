"""Reading a benchmark's images: the protocol's size, and OpenCV's plain bilinear pixel by pixel."""

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.common import MapDataset
from detectron2.data.detection_utils import SizeMismatchError
from PIL import ExifTags, Image

from tcl_d2.data.benchmarks import BenchmarkMapper
from tcl_d2.utils.resize import resize_bilinear, segmentation_size


def test_image_size_of_the_protocol():
    assert segmentation_size(375, 500, 448, 2048) == (448, 597)
    assert segmentation_size(100, 1000, 448, 2048) == (205, 2048)  # 204.8 and the long side's limit
    assert segmentation_size(448, 448, 448, 2048) == (448, 448)


def test_short_side_0_is_no_resizing(tmp_path):
    Image.new("RGB", (3000, 2)).save(tmp_path / "0.png")
    image = BenchmarkMapper(short=0, long=2048)({"file_name": str(tmp_path / "0.png")})["image"]
    assert image.shape == (3, 2, 3000)


@pytest.mark.parametrize("short, long, key", [(-1, 2048, "INPUT.MIN_SIZE_TEST"), (448, 0, "INPUT.MAX_SIZE_TEST")])
def test_sizes_out_of_range_are_refused(short, long, key):
    with pytest.raises(ValueError, match=f"{key} is"):
        BenchmarkMapper(short, long)


@pytest.mark.fault("a picture of 1 x 10000 pixels", "keeps at least one pixel a side")
def test_extreme_pictures_keep_a_pixel(tmp_path):
    Image.fromarray(np.full((1, 10000, 3), 7, np.uint8)).save(tmp_path / "0.png")
    out = BenchmarkMapper(short=448, long=2048)({"file_name": str(tmp_path / "0.png")})
    assert out["image"].shape == (3, 1, 2048) and (out["image"] == 7).all()
    assert (out["height"], out["width"]) == (1, 10000)


@pytest.mark.parametrize("size", [(30, 45), (13, 9), (64, 100), (50, 71), (1, 1), (500, 20)])
def test_resizing_is_opencvs_plain_bilinear(size):
    """Every pixel, larger and smaller: no antialias."""
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    theirs = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_bilinear(image, *size), theirs)


@pytest.mark.parametrize("shape", [(375, 500), (640, 427), (700, 1400)])
def test_whole_reading_is_opencvs(tmp_path, shape):
    """From the file to the model, as the published numbers had it."""
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    image = BenchmarkMapper(short=448, long=2048)({"file_name": path})["image"]
    size = segmentation_size(*shape, 448, 2048)
    theirs = cv2.resize(cv2.imread(path), size[::-1], interpolation=cv2.INTER_LINEAR)[..., ::-1]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), theirs)


def test_mapper_gives_the_resized_image_and_the_original_size(tmp_path):
    path = tmp_path / "0.png"
    Image.fromarray(np.zeros((12, 9, 3), np.uint8)).save(path)
    out = BenchmarkMapper(short=18, long=100)({"file_name": str(path), "image_id": "0"})
    assert out["image"].shape == (3, 24, 18) and out["image"].dtype == torch.uint8
    assert (out["height"], out["width"], out["image_id"]) == (12, 9, "0")
    path.write_bytes(b"broken")
    with pytest.raises(OSError, match="0.png could not be read"):
        BenchmarkMapper(short=18, long=100)({"file_name": str(path)})


@pytest.mark.fault("a picture whose size is not the height and width of its row", "an error names it, or a skip")
def test_an_image_has_the_size_of_its_row(tmp_path):
    """As in Detectron2's mapper; also where EXIF turns the picture."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = str(tmp_path / "0.jpg")
    Image.new("RGB", (12, 9)).save(path, exif=exif)
    mapper = BenchmarkMapper(short=18, long=100)
    assert mapper({"file_name": path, "height": 12, "width": 9})["height"] == 12
    for height, width in ((9, 12), (24, 18)):
        row = {"file_name": path, "height": height, "width": width}
        with pytest.raises(SizeMismatchError, match="0.jpg, got"):
            mapper(row)
        skipped = BenchmarkMapper(short=18, long=100, skip_broken=True)(row)
        assert "0.jpg, got (9, 12)" in skipped["error"] and "image" not in skipped


@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_is_called_as_detectron2s_own(shapes_cfg, is_train):
    """With a configuration and `is_train`, by name or place, alone in Detectron2's loader and MapDataset."""
    mapper = BenchmarkMapper(shapes_cfg, is_train=is_train)
    loader = build_detection_test_loader(shapes_cfg, "shapes_val", mapper=mapper)
    ((first,), *others) = list(loader)
    assert len(others) == 11 and first["image"].shape == (3, 96, 96) and "labels_only" not in first
    (mapped,) = MapDataset([{**first, "split": "val"}], BenchmarkMapper(shapes_cfg, is_train))
    assert mapped["split"] == "val" and torch.equal(mapped["image"], first["image"])
    with pytest.raises(OSError, match="none.png"):
        mapper({"file_name": "none.png"})
