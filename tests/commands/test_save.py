"""`tcl-d2 segment --save`: labels for annotation tools, read by the tools themselves."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from tcl_d2.commands.inputs import find_inputs
from tcl_d2.commands.options.segment import FORMATS
from tcl_d2.commands.result_folder import ResultFolder
from tcl_d2.commands.tool_folders import ToolFolders
from tcl_d2.data import check_datasets
from tcl_d2.data.labels import LabelMapper
from tcl_d2.data.shapes import draw_scene
from tcl_d2.segmentation import Segmentation
from tcl_d2.segmentation.tool_files import WRITERS
from tcl_d2.words.words import Words
from tests.running import check_error, run

NAMES = ["a", "b c", "more/a"]  # of the pictures that are whole
CLASSES = ["background", "yellow checked", "denim", "red checked"]
COMMAND = ("demo/demo.py", "--refine", "none", "--classes", ",".join(CLASSES[1:]) + ", not: soil", "--background")
SAVE = ("--save", "coco", "cvat", "--save", "labelme")
FILES = ("coco/annotations/instances_default.json", "coco/results.json", "cvat/labelmap.txt")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three pictures and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for index, name in enumerate(NAMES):
        Image.fromarray(draw_scene(7, index, size=48).image[: 48 - index]).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def saved(world, photos, tmp_path_factory):
    """The results of two processes."""
    output = tmp_path_factory.mktemp("saved")
    done = run(world, *COMMAND, *SAVE, "--num-processes", 2, "--output", output, photos)
    assert done.returncode == 1 and "broken.jpg" in done.stderr and "3 of 4 images segmented" in done.stdout
    return output


def labels_of(folder: Path, name: str) -> np.ndarray:
    """The labels that were found, with negative words' pixels as background."""
    labels = np.asarray(Image.open(folder / f"{name}_labels.png"))
    return np.where(labels < len(CLASSES), labels, 0)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for name in ("coco", "cvat", "labelme") for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_one_process_writes_the_same_also_after_it_was_stopped(world, photos, saved, tmp_path):
    """Here after the pictures, and after one of the folders."""
    options = ["--output", tmp_path, photos]
    run(world, *COMMAND, "--save", "labelme", "--boxes", *options)
    (tmp_path / ".cvat.tmp").mkdir()
    (tmp_path / ".cvat.tmp/labelmap.txt").write_text("half")
    done = run(world, *COMMAND, *SAVE, "--resume", *options)
    assert "3 of 4 images were done before" in done.stdout and "3 images for cvat" in done.stdout, done.stderr
    assert contents(tmp_path) == contents(saved) and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("path", ["coco/annotations/instances_default.json", "cvat", "labelme"])
def test_they_are_datasets(saved, path):
    """Whose labels are those that were found, pixel by pixel."""
    name = str(saved / path)
    check_datasets(train=[name], test=[name])
    rows, classes = DatasetCatalog.get(name), MetadataCatalog.get(name).stuff_classes
    numbers = np.array([CLASSES.index(word) for word in classes])
    for row, found in zip(sorted(rows, key=lambda row: row["file_name"]), NAMES):
        read = numbers[LabelMapper.of(name).read(row["sem_seg_file_name"])]
        np.testing.assert_array_equal(read, labels_of(saved, found))
    assert len(rows) == 3
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_pycocotools_reads_dataset_and_results(saved):
    dataset = COCO(str(saved / FILES[0]))
    names = {image["id"]: image["file_name"].removesuffix(".png") for image in dataset.dataset["images"]}
    assert sorted(names.values()) == NAMES
    for key, annotation in dataset.anns.items():
        expected = labels_of(saved, names[annotation["image_id"]]) == annotation["category_id"]
        np.testing.assert_array_equal(dataset.annToMask(annotation), expected, str(key))

    results = dataset.loadRes(str(saved / FILES[1]))
    assert results.anns
    for result in results.anns.values():
        labels = labels_of(saved, names[result["image_id"]])
        assert (labels[results.annToMask(result) == 1] == result["category_id"]).all() and 0 < result["score"] < 1
        assert result["category"] == CLASSES[result["category_id"]]


@pytest.mark.parametrize("path, kind", [("coco", "coco_instances"), ("cvat", "voc_segmentation")])
def test_datumaro_reads_coco_and_cvat(saved, path, kind):
    """As CVAT does, which imports by it."""
    datumaro = pytest.importorskip("datumaro")
    dataset = datumaro.Dataset.import_from(str(saved / path), kind)
    words = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    assert words == CLASSES[path == "coco" :] and sorted(item.id for item in dataset) == NAMES
    for item in dataset:
        labels = labels_of(saved, item.id)
        drawn = np.zeros(item.media.data.shape[:2], int)
        for annotation in (entry for entry in item.annotations if entry.type == datumaro.AnnotationType.mask):
            drawn[np.asarray(annotation.image) == 1] = CLASSES.index(words[annotation.label])
        np.testing.assert_array_equal(drawn, labels)


def test_labelme_reads_its_files(saved):
    """It draws the pixels that an outline goes through, too: all others are those that were found."""
    labelme = pytest.importorskip("labelme")
    from labelme.utils import img_data_to_arr, shapes_to_label

    for name in NAMES:
        file = labelme.LabelFile(str(saved / f"labelme/{name}.json"))
        labels = labels_of(saved, name)
        assert img_data_to_arr(file.image_data).shape[:2] == labels.shape
        drawn, _ = shapes_to_label(labels.shape, file.shapes, {word: k for k, word in enumerate(CLASSES)})
        inner = np.ones(labels.shape, bool)
        for axis in (0, 1):
            for step in (-1, 1):
                inner &= np.roll(labels, step, axis) == labels
        assert inner.sum() > labels.size / 2 and (drawn == labels)[inner].mean() > 0.99


# ------------------------------------------------------------------------------------ what must not be lost


@pytest.fixture
def results(tmp_path, photos):
    """A function that writes the results of pictures, and then their folders for tools."""

    def write(count: int = 3) -> None:
        paths = find_inputs([f"{photos}/{name}.png" for name in NAMES[:count]], tmp_path)
        folder = ResultFolder(tmp_path, paths)
        tools = ToolFolders(tmp_path, ["labelme", "cvat"], Words.read("brick, lava"), [])
        for source in folder.begin({"words": "brick, lava"}, resume=True):
            image = np.asarray(Image.open(source.path))
            segmentation = Segmentation(image, ["brick", "lava"], (image[..., 0] > 99).astype(int))
            segmentation.save(tmp_path, source.name, state=source.state)
        tools.write(folder.done())

    return write


@pytest.mark.fault("segment --save over labels that were corrected", "refused at the start; they stay")
def test_corrected_labels_are_not_replaced(results, tmp_path):
    results(2)
    results(3)  # more pictures, and no change
    assert len(list((tmp_path / "labelme").rglob("*.json"))) == 3

    path = tmp_path / "labelme/a.json"
    path.write_text(text := path.read_text().replace("lava", "wood"))
    with pytest.raises(ValueError, match="labelme has files that were changed.*corrected labels: move that folder"):
        results(3)
    assert path.read_text() == text
    (tmp_path / "labelme").rename(tmp_path / "mine")
    results(3)
    (tmp_path / "cvat/SegmentationClass/new.png").write_text("")
    with pytest.raises(ValueError, match="cvat has files"):
        results(3)


@pytest.mark.fault("segment --save: a disk that is full", "one message; what was there before stays whole")
def test_folders_are_whole_or_not_there(results, tmp_path, monkeypatch):
    results(2)
    before = contents(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tcl_d2.segmentation.tool_files.label_outlines", fail)
    with pytest.raises(OSError, match="No space left"):
        results(2)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    results(2)
    assert contents(tmp_path) == before


@pytest.mark.fault("segment --save: words or folders that a format cannot hold, or a video", "refused at the start")
def test_what_cannot_be_saved_is_said_at_the_start(world, photos, tmp_path):
    output = ["--output", tmp_path / "out"]
    command = ["demo/demo.py", photos, *output, "--save", "cvat", "--classes"]
    check_error(run(world, *command, "a: b, brick"), "--save cvat", "cannot hold the word 'a: b'")
    check_error(run(world, *command[:1], "--video-input", "x.mp4", *command[2:], "brick"), "--save is for image files")
    with pytest.raises(ValueError, match="--save coco: results of a folder 'coco' go there too"):
        ToolFolders(tmp_path, ["coco"], Words.read("brick"), ["a", "coco/b"])


def test_every_format_can_be_asked_for():
    assert tuple(WRITERS) == FORMATS
