"""`tcl-d2 prepare labels`: COCO's instances as label maps that are trained on."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tcl_d2.commands.options.prepare import labels as labels_options
from tcl_d2.commands.prepare import labels
from tcl_d2.data import LabeledDatasets, check_datasets, register_benchmark_folder
from tcl_d2.data.labels import LabelMapper, read_label
from tcl_d2.data.shapes import OBJECTS
from tcl_d2.utils.files import digest_file


def prepare(folder, *options: object, annotations=None, images=None) -> None:
    command = [annotations, "--images", images, "--output", folder, "--processes", 1, *options]
    labels.main(labels_options.argument_parser().parse_args(list(map(str, command))))


@pytest.fixture
def source(in_world):
    """The small world's annotations, and its images."""
    return {"annotations": in_world / "shapes/val/instances.json", "images": in_world / "shapes/val/images"}


@pytest.fixture
def changed(source, tmp_path):
    """A function that changes a copy of the annotations."""

    def change(function) -> dict:
        content = json.loads(source["annotations"].read_text())
        function(content)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(content))
        return {**source, "annotations": path}

    return change


def drawn(folder) -> dict[str, np.ndarray]:
    """Return the labels by name, with the class names' places in OBJECTS from 1, 0 elsewhere."""
    names = (folder / "classes.txt").read_text().splitlines()
    table = np.array([OBJECTS.index(name) + 1 if name in OBJECTS else 0 for name in names] + [0] * (256 - len(names)))
    return {path.name: table[read_label(str(path))] for path in (folder / "labels").iterdir()}


@pytest.mark.parametrize("option", [[], ["--ignore-unlabeled"]], ids=["background", "ignored"])
def test_instances_are_drawn_and_trained_on(source, in_world, tmp_path, option):
    """As the world itself was drawn; what is no object is the background, or ignored."""
    folder = tmp_path / "mine"
    prepare(folder, *option, **source)
    truth = {path.name: read_label(str(path)).astype(int) for path in (in_world / "shapes/val/labels").iterdir()}
    for name, label in drawn(folder).items():
        expected = np.where(truth[name] < len(OBJECTS), truth[name] + 1, 0)
        np.testing.assert_array_equal(label, expected)
    assert {path.name for path in (folder / "images").iterdir()} == truth.keys()

    # As a dataset
    name = register_benchmark_folder(str(folder))
    check_datasets(train=[name])
    first = LabelMapper.of(name).read(str(folder / "labels/00000.png"))
    num_classes = len(MetadataCatalog.get(name).stuff_classes)
    assert MetadataCatalog.get(name).background is not bool(option)
    assert (first == num_classes).any() == bool(option) and ((first == 0).any() or option)
    assert len(LabeledDatasets([name], mapper=dict)._rows) == len(truth)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.fault(
    "tcl-d2 prepare labels is killed, or its files are broken", "a second run makes what is missing, and no more"
)
def test_a_second_run_goes_on(source, tmp_path):
    folder = tmp_path / "mine"
    prepare(folder, **source)
    files = [folder / "labels/00000.png", folder / "labels/00001.png", folder / "images/00002.png"]
    digests = list(map(digest_file, files))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:50])
    files[2].unlink()
    files[2].symlink_to(tmp_path / "gone.png")
    kept = (folder / "labels/00003.png").stat().st_mtime_ns
    (folder / "classes.txt").write_text(text := (folder / "classes.txt").read_text().replace("\n", ", thing\n", 1))

    prepare(folder, **source)
    assert list(map(digest_file, files)) == digests
    assert (folder / "labels/00003.png").stat().st_mtime_ns == kept and (folder / "classes.txt").read_text() == text


@pytest.mark.fault(
    "label maps of other annotations lie in --output of tcl-d2 prepare labels", "refused; nothing is mixed"
)
def test_other_labels_are_not_mixed(source, changed, tmp_path):
    prepare(tmp_path / "mine", **source)
    other = changed(lambda content: content["annotations"].pop())
    for options, files in ((["--ignore-unlabeled"], source), ([], other)):
        with pytest.raises(SystemExit, match="mine' has labels of other annotations or options"):
            prepare(tmp_path / "mine", *options, **files)


@pytest.mark.fault(
    "annotations of tcl-d2 prepare labels that do not fit", "one error names them; the folder is no dataset"
)
@pytest.mark.parametrize(
    "change, error",
    [
        (lambda content: content["images"][1].update(file_name="none.png"), "1 of 12 failed.*\n.*no image .*none.png"),
        (lambda content: content["images"][1].update(file_name="../x.png"), "'../x.png', which may lead out of"),
        (lambda content: content["images"][1].update(height=7), "has RLE of the size"),
        (lambda content: content["categories"][1].update(name="background"), "'background' also stands for class 0"),
        (
            lambda content: content["categories"].extend({"id": 500 + k, "name": f"c{k}"} for k in range(255)),
            "expected at most 255",
        ),
    ],
)
def test_what_does_not_fit_is_named(changed, tmp_path, change, error):
    with pytest.raises(SystemExit, match=error):
        prepare(tmp_path / "mine", **changed(change))
    assert not (tmp_path / "mine/classes.txt").exists()


def test_only_images_with_instances_teach_where_the_rest_is_ignored(changed, tmp_path):
    """And a category's commas do not make several words of it."""

    def change(content):
        first = content["images"][0]["id"]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != first]
        content["categories"][0]["name"] = "crate, wooden"

    source = changed(change)
    for options, count in ((["--ignore-unlabeled"], 11), ([], 12)):
        folder = tmp_path / str(count)
        prepare(folder, *options, **source)
        assert len(list((folder / "labels").iterdir())) == len(list((folder / "images").iterdir())) == count
        assert "crate wooden" in (folder / "classes.txt").read_text().splitlines()
