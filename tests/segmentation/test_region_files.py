"""Region files: PNGs of numbers or colors, and JSON of masks as SAM's tools write it."""

import json

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from tcl_d2.segmentation.region_files import check_region_files, read_regions, region_file

SIZE = (4, 6)


def rle(mask: np.ndarray, compressed: bool = True) -> dict:
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int).T.flatten()])))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[rows, columns] = True
    return mask


def write(folder, content) -> str:
    path = folder / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def same_parts(regions: np.ndarray, expected: np.ndarray) -> bool:
    """Whether regions are the same, whatever their numbers, and 0 is of none in both."""
    pairs = set(zip(regions.flatten().tolist(), expected.flatten().tolist()))
    lefts, rights = zip(*pairs)
    are_pairs = len(set(lefts)) == len(pairs) == len(set(rights))
    return are_pairs and all((left == 0) == (right == 0) for left, right in pairs)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB"])
def test_pngs_have_a_number_or_a_color_for_each_region(mode, tmp_path):
    numbers = np.array([[0, 0, 3, 3, 9, 9]] * 4)
    numbers[2:, 4:] = 200
    pixels = numbers.astype(np.uint16 if mode == "I;16" else np.uint8)
    if mode == "RGB":  # the second region differs in blue alone
        pixels = np.stack([np.minimum(pixels, 3), pixels * 0, pixels], 2)
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "a.png")
    regions = read_regions(tmp_path / "a.png", SIZE)
    assert regions.dtype == np.int64 and regions.max() == 3 and same_parts(regions, numbers)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("form", ["list", "annotations"])
def test_small_masks_lie_over_large_ones(form, compressed, tmp_path):
    """In any order; a pixel of no mask has no region."""
    small, large, middle = box(slice(1, 2), slice(1, 3)), box(slice(0, 3), slice(0, 5)), box(slice(0, 2), slice(0, 4))
    masks = [{"segmentation": rle(mask, compressed), "area": 1} for mask in (small, large, middle)]
    path = write(tmp_path, masks if form == "list" else {"image": {}, "annotations": masks})
    expected = np.where(small, 3, np.where(middle, 2, np.where(large, 1, 0)))
    assert same_parts(read_regions(path, SIZE), expected)


def test_no_masks_are_no_regions(tmp_path):
    assert not read_regions(write(tmp_path, []), SIZE).any()


@pytest.mark.fault("region files of another size, or that are none", "one error that names the file")
@pytest.mark.parametrize(
    "content, message",
    [
        ([{"segmentation": rle(np.ones((4, 5), bool))}], r"entry 0 has RLE of the size \[4, 5\], .* \[4, 6\]"),
        ([{"segmentation": {"size": [4, 6], "counts": [3, 4]}}], "entry 0 has RLE whose counts do not cover"),
        ([{"segmentation": {"size": [4, 6], "counts": "0"}}], "entry 0 has RLE whose counts do not cover"),
        ([{"segmentation": [[0, 0, 3, 0, 3, 3]]}], "entry 0 has no RLE"),
        ([3], "entry 0 has no RLE"),
        ({"masks": []}, "expected a list of masks"),
        ("[", "Expecting value"),
    ],
)
def test_unusable_masks_are_named(content, message, tmp_path):
    with pytest.raises(ValueError, match=f"a.json' cannot be used: .*{message}"):
        read_regions(write(tmp_path, content), SIZE)


@pytest.mark.parametrize("shape, message", [((6, 4), "6 x 4 pixels, but .* 4 x 6"), ((4, 6, 4), "kind RGBA")])
def test_unusable_pngs_are_named(shape, message, tmp_path):
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"a.png' cannot be used: .*{message}"):
        read_regions(tmp_path / "a.png", SIZE)


def test_files_are_named_as_the_images(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.json").touch()
    assert region_file(tmp_path, "photos/a.jpg") == tmp_path / "a.png"
    assert region_file(tmp_path, "b.webp") == tmp_path / "b.json"
    check_region_files(tmp_path, ["a.jpg", "b.jpg"])


@pytest.mark.fault("images without a region file", "one error at the start names them")
def test_missing_files_are_listed(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(FileNotFoundError, match="2 images have no region file:\n.*'x/c.jpg'.*\n.*'d.jpg'.*d.json'"):
        check_region_files(tmp_path, ["a.jpg", "x/c.jpg", "d.jpg"])
