"""Labels of annotation tools as datasets by their paths: COCO's JSON, CVAT's masks, labelme's JSON."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tcl_d2.data import BenchmarkMapper, LabeledDatasets, check_datasets
from tcl_d2.data.labels import LabelMapper
from tcl_d2.evaluation.progress import stat_files
from tcl_d2.segmentation.tool_files import COCO_FILE, WRITERS, LabeledPicture

WORDS = ["brick", "lava", "ignored"]
LABELS = np.kron([[0, 1, 2], [1, 3, 0]], np.ones((4, 5), int))


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of 8 x 15 pixels, one in a folder, with labels of three words."""
    made = []
    for name, labels in (("a b", LABELS), ("more/c", LABELS[::-1])):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 15, 3), 99, np.uint8)).save(path)
        made.append(LabeledPicture(name, path, labels))
    return made


@pytest.fixture
def saved(tmp_path, pictures):
    """A function that writes a format, and returns the path of the dataset; it is forgotten afterwards."""

    def save(name: str, words=WORDS) -> Path:
        WRITERS[name](tmp_path / name, pictures, words)
        return tmp_path / name / (COCO_FILE if name == "coco" else "")

    yield save
    for name in [name for name in DatasetCatalog.list() if name.startswith(str(tmp_path))]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_is_read(saved, pictures, name):
    """The background and what is ignored have their names; the labels are those that were written."""
    path = str(saved(name))
    check_datasets(train=[path], test=[path])
    metadata, rows = MetadataCatalog.get(path), DatasetCatalog.get(path)
    assert metadata.stuff_classes == ["background", "brick", "lava"]
    assert metadata.background and metadata.ignore_label == 65535
    for row, picture in zip(rows, pictures):
        read = LabelMapper.of(path).read(row["sem_seg_file_name"])
        np.testing.assert_array_equal(read, picture.labels)  # 3, the number of classes, stands for ignored
        assert row["file_name"].endswith(f"{picture.name}.png") and row["dataset_name"] == path
    assert None not in stat_files(rows)

    # As training and evaluation read it
    (first, second) = LabeledDatasets([path], mapper=dict)._rows
    assert first.keys() >= {"file_name", "sem_seg_file_name"}
    assert BenchmarkMapper(short=8, long=64)(second)["image"].shape == (3, 8, 15)


def change(path: Path, function) -> None:
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


def shape(kind: str, points: list, **more) -> dict:
    return {"label": "brick", "shape_type": kind, "points": points, **more}


def encode(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_labelmes_shapes_lie_one_over_the_other(saved):
    """Rectangles, circles and masks too, in their order; a mask's last point is its last pixel."""
    folder = saved("labelme", ["a", "b", "c"])
    mask = np.array([[True, False], [False, True]])
    shapes = [
        shape("rectangle", [[9, 7], [1, 1]], label="wood"),
        shape("circle", [[12, 4], [12, 6]], label="_background_"),
        shape("circle", [[12, 4], [12, 5.5]]),
        shape("mask", [[2, 3], [3, 4]], label="__ignore__", mask=encode(mask)),
    ]
    change(folder / "a b.json", lambda content: content.update(shapes=shapes))
    change(folder / "more/c.json", lambda content: content.update(shapes=[]))
    check_datasets(train=[str(folder)])
    assert MetadataCatalog.get(str(folder)).stuff_classes == ["background", "brick", "wood"]

    mapper, rows = LabelMapper.of(str(folder)), DatasetCatalog.get(str(folder))
    label = mapper.read(rows[0]["sem_seg_file_name"])
    assert (label[1:7, 1:9] == 2).sum() == 46 and label[3, 2] == label[4, 3] == 3 and label[4, 12] == 1
    assert label[0, 0] == label[5, 14] == 0 and not mapper.read(rows[1]["sem_seg_file_name"]).any()


BOWTIE = [[0, 0], [6, 6], [6, 0], [0, 6]]


@pytest.mark.fault(
    "labels of labelme: broken, or polygons that cross", "at the start; one error names all of the files"
)
@pytest.mark.parametrize(
    "broken, error",
    [
        ({"shapes": [shape("polygon", BOWTIE)]}, "shape 0, 'brick', a polygon whose sides 0 and 2 cross"),
        ({"shapes": [shape("polygon", [[0, 0], [6, 6]])]}, "shape 0, 'brick', a polygon of 2 points; expected"),
        ({"shapes": [shape("line", [[0, 0], [6, 6]])]}, "a line of 2 points; expected a polygon, rectangle"),
        ({"shapes": [shape("polygon", [[0, 0], [6, 6], [1, float("nan")]])]}, "'points' are no pairs x, y"),
        ({"shapes": [shape("polygon", "000000")]}, "'points' are no pairs x, y"),
        ({"shapes": [shape("mask", [[2, 3], [3, 4]], mask="????")]}, "mask cannot be read"),
        ({"shapes": [shape("mask", [[2, 3], [9, 4]], mask=encode(np.eye(2, dtype=bool)))]}, "not lie between"),
        ({"shapes": [shape("mask", [[-1, 3], [0, 4]], mask=encode(np.eye(2, dtype=bool)))]}, "not in the picture"),
        ({"shapes": [{"points": []}]}, "shape 0 without a 'label'"),
        ({"shapes": None}, "no list 'shapes'"),
        ({"imagePath": 3}, "no 'imagePath'"),
        ({"imageHeight": 0}, r"imageHeight and imageWidth \(0, 15\)"),
        ({"imageHeight": 10**9}, "imageHeight and imageWidth"),
    ],
)
def test_broken_labels_of_labelme_are_named(saved, broken, error):
    folder = saved("labelme")
    change(folder / "a b.json", lambda content: content.update(broken))
    (folder / "more/d.json").write_text("{")
    with pytest.raises(ValueError, match="2 label files cannot be used") as raised:
        check_datasets(train=[str(folder)])
    lines = str(raised.value).splitlines()
    assert lines[0].startswith(f"Dataset '{folder}'") and "d.json is no JSON" in lines[2]
    with pytest.raises(ValueError, match=error):
        check_datasets(test=[str(folder)])


@pytest.mark.fault("labels of labelme whose picture is not beside them, or of another size", "one error names it")
def test_pictures_must_be_there(saved):
    folder = saved("labelme")
    change(folder / "a b.json", lambda content: content.update(imagePath="..\\photos\\a b.png", imageHeight=9))
    check_datasets(train=[str(folder)])  # its name alone counts
    with pytest.raises(Exception, match="8.*9|9.*8"):
        BenchmarkMapper(short=8, long=64)(DatasetCatalog.get(str(folder))[0])
    (folder / "more/c.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images of .*c.png"):
        check_datasets(train=[str(folder)])


@pytest.mark.fault(
    "CVAT's masks: colors of no class, a broken label map, no picture", "at the start; one error names it"
)
@pytest.mark.parametrize(
    "line, error",
    [
        ("other:1,2,3::", r"a b.png has the color \(128, 0, 0\), which no class of labelmap.txt has"),
        ("brick:1,2::", "labelmap.txt, line 3: 'brick:1,2::'; expected NAME:RED,GREEN,BLUE::"),
        ("brick", "line 3: 'brick'; expected"),
        ("brick:128,0,300::", "of 0..255"),
        ("brick:0,128,0::", "no color of another class"),
        ("lava:128,0,0::", "the class 'lava' stands there twice"),
        (":128,0,0::", "line 3"),
    ],
)
def test_broken_label_maps_are_named(saved, line, error):
    folder = saved("cvat")
    path = folder / "labelmap.txt"
    path.write_text(path.read_text().replace("brick:128,0,0::", line))
    with pytest.raises(ValueError, match=error):
        check_datasets(train=[str(folder)])


def test_masks_may_be_gray_or_of_a_palette(saved):
    """Gray values are the places in the label map; a palette counts by its colors. Pictures may have no mask."""
    folder = saved("cvat")
    mask = folder / "SegmentationClass/a b.png"
    expected = np.asarray(Image.open(mask))
    Image.fromarray(expected).quantize().save(mask)
    Image.fromarray(LABELS[::-1].astype(np.uint8)).save(folder / "SegmentationClass/more/c.png")
    Image.fromarray(expected).save(folder / "JPEGImages/unlabeled.png")
    check_datasets(train=[str(folder)])
    for row, labels in zip(DatasetCatalog.get(str(folder)), (LABELS, LABELS[::-1])):
        np.testing.assert_array_equal(LabelMapper.of(str(folder)).read(row["sem_seg_file_name"]), labels)

    (folder / "JPEGImages/a b.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 masks have no picture.*a b"):
        check_datasets(train=[str(folder)])


@pytest.mark.fault(
    "a COCO file as a dataset of labels: broken entries, or without its pictures", "one error names them"
)
@pytest.mark.parametrize(
    "function, error",
    [
        (
            lambda content: content["annotations"][0]["segmentation"].update(size=[9, 9]),
            "annotation 1 has RLE of the size",
        ),
        (lambda content: content["annotations"][0].update(category_id=9), "category_id 9, which is not in the list"),
        (lambda content: content["images"][0].update(file_name="../x.png"), "may lead out of"),
        (lambda content: content["images"][1].update(file_name="x.png"), "1 of 2 images of .* are missing"),
        (lambda content: content["images"][0].update(file_name="x.png"), "no image x.png of .*/coco/images/default, "),
        (lambda content: content["categories"][1].update(name="brick"), "'brick' also stands for class 1"),
        (lambda content: content.pop("annotations"), "no list 'annotations'"),
    ],
)
def test_broken_coco_files_are_named(saved, function, error):
    path = saved("coco")
    change(path, function)
    with pytest.raises((ValueError, OSError), match=error):
        check_datasets(train=[str(path)])


def test_lists_of_captions_and_unpacked_shards_are_no_labels(tmp_path, pictures):
    """Their JSON files have no shapes, and no annotations."""
    folder = pictures[0].path.parent
    (folder / "a b.txt").write_text("a brick")
    (folder / "a b.json").write_text(json.dumps({"key": "a b", "caption": "a brick"}))
    (folder / "list.json").write_text(json.dumps({"image": "a b.png", "caption": "a brick"}))
    check_datasets(train=[str(folder), f"{folder}/list.json"])
    assert [row["captions"] for row in DatasetCatalog.get(f"{folder}/list.json")] == [["a brick"]]
    for name in (str(folder), f"{folder}/list.json"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
