"""The preparation commands, run as processes on miniatures of what is distributed, and evaluation of what they make.

Expected figures are computed from the raw files by other means (distributed.py).
"""

import errno
import importlib
import json
import os
import re
import runpy
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib import pyplot as plt
from PIL import Image
from scipy.io import savemat

from tcl_d2 import load_config
from tcl_d2.commands.prepare import context459
from tcl_d2.data import preparation
from tcl_d2.data.labels import read_label
from tcl_d2.engine import Trainer
from tests.conftest import ROOT
from tests.data import distributed
from tests.running import run

BENCHMARKS = [
    *("zeroshot_voc_val", "zeroshot_context_val", "zeroshot_coco_object_val", "zeroshot_voc20_val"),
    *("zeroshot_context59_val", "zeroshot_coco_stuff_val", "zeroshot_cityscapes_val", "zeroshot_ade20k_val"),
    *("zeroshot_lvis_val", "zeroshot_ade847_val", "zeroshot_context459_val"),
]
COMMANDS = {
    "voc": ["VOCtrainval_11-May-2012.tar"],
    "context": ["VOCtrainval_03-May-2010.tar", "trainval.tar.gz", "labels.txt"],
    "coco": ["val2017.zip", "stuffthingmaps_trainval2017.zip"],
    "cityscapes": ["leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"],
    "ade20k": ["ADEChallengeData2016.zip"],
    "ade847": ["ADE20K_2021_17_01.zip"],
    "context459": ["VOCtrainval_03-May-2010.tar", "trainval.tar.gz"],
    "lvis": ["lvis_v1_val.json.zip", "train2017.zip", "lvis_val2017.zip"],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(root, truths, outputs): every command run once, on archives."""
    downloads, root = tmp_path_factory.mktemp("downloads"), tmp_path_factory.mktemp("data")
    words = MetadataCatalog.get("zeroshot_context59_val").stuff_classes
    truths = distributed.voc(downloads) | distributed.context(downloads, words) | distributed.coco(downloads)
    truths |= distributed.cityscapes(downloads) | distributed.ade20k(downloads) | distributed.lvis(downloads)
    truths |= distributed.ade847(downloads)
    outputs = {}
    for name, files in COMMANDS.items():
        sources = [downloads / file for file in files]
        outputs[name] = run(root, f"datasets/prepare_{name}.py", "--source", *sources, "--processes", 2)
    return root, truths, outputs, downloads


@pytest.fixture
def data(prepared, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared[0]))
    return prepared


@pytest.fixture
def scratch(prepared, tmp_path, monkeypatch):
    """An empty root, and in-process runs of commands: (exit status or message, what was printed)."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def run_here(name: str, *options: object, capsys) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", [f"prepare_{name}.py", *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / f"datasets/prepare_{name}.py"), run_name="__main__")
        return stop.value.code, capsys.readouterr().out

    return tmp_path, prepared[3], run_here


class Oracle(torch.nn.Module):
    """Gives for each image what a function says of its ID, instead of looking."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels

    def set_dataset(self, *names: str, class_words: dict | None = None) -> None:
        pass

    def forward(self, batched_inputs):
        return [
            {"sem_seg_labels": torch.from_numpy(self.labels(input_per_image["image_id"]))}
            for input_per_image in batched_inputs
        ]


def evaluate(name: str, labels, folder, *options: object) -> dict:
    options = ["DATASETS.TEST", (name,), "OUTPUT_DIR", folder, "DATALOADER.NUM_WORKERS", 0, *options]
    cfg = load_config(None, options)
    return Trainer.test(cfg, Oracle(labels))[name]["sem_seg"]


def mean_iou(name: str, truth: distributed.Truth, labels) -> float:
    """In percent, class by class."""
    pairs = [(truth[key], labels(key)) for key in truth]
    ious = []
    for k in range(len(MetadataCatalog.get(name).stuff_classes)):
        both = sum(((t == k) & (p == k)).sum() for t, p in pairs)
        either = sum((((t == k) | (p == k)) & (t != distributed.IGNORED)).sum() for t, p in pairs)
        if either:
            ious.append(both / either)
    return 100 * float(np.mean(ious))


# ------------------------------------------------------------------------------------------------- what is prepared


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_find_nothing_wrong_but_the_count(data, name):
    """A miniature has fewer images than the real thing; that and nothing else is said."""
    done = data[2][name]
    assert done.returncode == 1, done.stderr
    problems = done.stdout.split("problems:\n")[1].splitlines()
    assert problems and all("images; expected" in line for line in problems), done.stdout


@pytest.mark.parametrize("name", [*BENCHMARKS, "zeroshot_voc20_train", "zeroshot_context59_train"])
def test_images_and_labels_are_the_distributed_ones(data, name):
    _, truths, *_ = data
    assert [row["image_id"] for row in DatasetCatalog.get(name)] == sorted(truths[name])


def test_only_what_is_needed_is_brought(data):
    root, truths, *_ = data
    images = {path.stem for path in (root / "VOC2012/JPEGImages").iterdir()}
    assert images == set(truths["zeroshot_voc_val"]) | set(truths["zeroshot_voc20_train"])
    assert (
        not (root / "coco/stuffthingmaps/train2017").exists() and not (root / "cityscapes/leftImg8bit/train").exists()
    )


@pytest.mark.parametrize("name", BENCHMARKS)
def test_ground_truth_scores_100_whatever_ignored_pixels_get(data, name, tmp_path):
    truth = data[1][name]
    results = [
        evaluate(name, {key: np.where(label < 0, filler, label) for key, label in truth.items()}.get, tmp_path)
        for filler in (0, 1)
    ]
    assert results[0]["mIoU"] == results[0]["pACC"] == 100 and results[1] == pytest.approx(results[0], nan_ok=True)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_constant_model_scores_what_a_hand_computation_says(data, name, tmp_path):
    """Its class has the share of its pixels; all other classes that are there have 0."""
    truth = data[1][name]
    values = np.concatenate([label.ravel() for label in truth.values()])
    values = values[values >= 0]
    constant = int(np.bincount(values).argmax())
    result = evaluate(name, lambda key: np.full(distributed.SIZE, constant), tmp_path)
    expected = 100 * np.mean(values == constant) / len(np.unique(values))
    assert result["mIoU"] == pytest.approx(expected)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_random_model_scores_what_the_raw_files_say(data, name, tmp_path):
    truth, classes = data[1][name], len(MetadataCatalog.get(name).stuff_classes)
    guesses = {key: np.random.default_rng(i).integers(0, classes, distributed.SIZE) for i, key in enumerate(truth)}
    labels = {key: np.where(guesses[key] % 3, guesses[key], truth[key].clip(0)) for key in truth}  # a third is right
    result = evaluate(name, labels.get, tmp_path)
    assert result["mIoU"] == pytest.approx(mean_iou(name, truth, labels.get)) and 0 < result["mIoU"] < 100


def test_predictions_of_847_classes_are_kept_and_read_back(data, tmp_path, monkeypatch):
    """In 16 bits, which the analysis reads; classes that no file can hold in 8 bits are among them."""
    name, truth = "zeroshot_ade847_val", data[1]["zeroshot_ade847_val"]
    labels = {key: np.where(np.indices(label.shape)[0] % 3, label.clip(0), 846) for key, label in truth.items()}
    result = evaluate(name, labels.get, tmp_path, "TEST.ZERO_SHOT.SAVE_PREDICTIONS", True)
    folder = tmp_path / f"inference/{name}/predictions"
    for key, label in labels.items():
        assert np.array_equal(read_label(str(folder / f"{key}.png")), label)

    monkeypatch.syspath_prepend(ROOT / "tools")
    analyze = importlib.import_module("analyze")
    monkeypatch.setattr(analyze, "save_figure", lambda figure, path: plt.close(figure))
    assert analyze.analyze_predictions(name, folder, tmp_path, 0)["mIoU"] == pytest.approx(result["mIoU"])
    classes = json.loads((tmp_path / "results.json").read_text())["IoU of each class"][name]
    assert list(classes) == MetadataCatalog.get(name).stuff_classes


# ------------------------------------------------------------------------------ other sources, repeating, and faults


def test_tree_without_vocdevkit_is_linked_not_copied(scratch, tmp_path_factory, capsys):
    root, _, run_here = scratch
    folder = tmp_path_factory.mktemp("tree")
    distributed.voc(folder, top="VOC2012")
    shutil.unpack_archive(folder / "VOCtrainval_11-May-2012.tar", folder)
    _, out = run_here("voc", "--source", folder / "VOC2012", capsys=capsys)
    assert "zeroshot_voc_val: 3 images" in out and (root / "VOC2012/JPEGImages/2007_000000.jpg").is_symlink()


def test_downloads_in_the_data_folder_are_found(scratch, capsys):
    root, downloads, run_here = scratch
    shutil.copy(downloads / "ADEChallengeData2016.zip", root)
    assert "zeroshot_ade20k_val: 2 images" in run_here("ade20k", capsys=capsys)[1]


def test_ready_context_pngs_are_used(scratch, data, capsys):
    root, _, run_here = scratch
    for part in ("JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext"):
        shutil.copytree(data[0] / "VOC2010" / part, root / "VOC2010" / part)
    os.environ["DETECTRON2_DATASETS"] = str(root)
    assert "zeroshot_context_val: 2 images" in run_here("context", capsys=capsys)[1]


def test_repeating_keeps_what_is_whole_and_redoes_what_is_broken(scratch, capsys):
    root, downloads, run_here = scratch
    options = ["--source", *(downloads / file for file in COMMANDS["context"]), "--processes", 1]
    run_here("context", *options, capsys=capsys)
    labels = sorted((root / "VOC2010/SegmentationClassContext").iterdir())
    before, whole = [path.stat().st_mtime_ns for path in labels], labels[0].read_bytes()
    labels[0].write_bytes(whole[: len(whole) // 2])
    (root / "VOC2010/JPEGImages/2008_000001.jpg").write_bytes(b"cut")
    _, out = run_here("context", "--check", capsys=capsys)
    assert f"{labels[0]} could not be read" in out and "2008_000001.jpg could not be read" in out
    assert "read" not in run_here("context", *options, capsys=capsys)[1].split("problems")[1]
    assert labels[0].read_bytes() == whole and [path.stat().st_mtime_ns for path in labels][1:] == before[1:]
    assert not list(root.rglob("*.tmp"))


def test_check_names_sizes_and_values_that_are_wrong(scratch, capsys):
    root, downloads, run_here = scratch
    run_here("ade20k", "--source", downloads / "ADEChallengeData2016.zip", capsys=capsys)
    labels = sorted((root / "ADEChallengeData2016/annotations/validation").iterdir())
    Image.fromarray(np.full((5, 6), 3, np.uint8)).save(labels[0])
    Image.fromarray(np.full(distributed.SIZE, 200, np.uint8)).save(labels[1])
    status, out = run_here("ade20k", "--check", capsys=capsys)
    assert status == 1 and "is (5, 6), but" in out and "has the value 200" in out


def shift(values: np.ndarray, name: str) -> np.ndarray:
    """Renumber labels as other projects do: classes in a row from 0, 255 (or 65535) where there is none."""
    table = np.full(1 << 16, 65535 if name in ("ade847", "lvis") else 255)
    numbers = [number - 1 for number in (*distributed.THINGS, *distributed.STUFF)]
    classes = {"coco": numbers, "voc": range(1, 21), "context": range(1, 60), "ade20k": range(1, 151)}
    classes |= {"cityscapes": range(1, 19), "lvis": range(1, 1204), "ade847": range(1, 847)}
    table[classes[name]] = np.arange(len(classes[name]))
    return table[values].astype(values.dtype)


LABELS = {
    "voc": "VOC2012/SegmentationClass/*.png",
    "context": "VOC2010/SegmentationClassContext/*.png",
    "coco": "coco/stuffthingmaps/val2017/*.png",
    "cityscapes": "cityscapes/gtFine/val/*/*_labelTrainIds.png",
    "ade20k": "ADEChallengeData2016/annotations/validation/*.png",
    "ade847": "ADE20K_2021_17_01/annotations_detectron2/validation/*.tif",
    "lvis": "lvis/semantic/*/*.png",
}


def check_shifted(data, scratch, name, capsys) -> tuple[object, str]:
    """Renumber the labels of a prepared dataset, and check it."""
    root, _, run_here = scratch
    folders = {"lvis": ("lvis", "coco")}.get(name, (LABELS[name].partition("/")[0],))
    for folder in folders:
        shutil.copytree(data[0] / folder, root / folder)
    os.environ["DETECTRON2_DATASETS"] = str(root)
    for path in root.glob(LABELS[name]):
        preparation.save_label(shift(read_label(str(path)), name), path)
    return run_here(name, "--check", "--processes", 1, capsys=capsys)


@pytest.mark.fault("label maps with values that no label of the release has", "prepare names file and value")
@pytest.mark.parametrize("name, value", [("ade20k", 255), ("context", 255), ("lvis", 65535)])
def test_renumbered_labels_are_told(data, scratch, name, value, capsys):
    """In parts of a dataset too, where classes are missing anyway."""
    status, out = check_shifted(data, scratch, name, capsys)
    assert status == 1 and f"has the value {value}, which no label of the release has" in out


@pytest.mark.fault("label maps of COCO-Stuff with a number of no category", "prepare names file and value")
def test_renumbered_coco_is_told(data, scratch, capsys):
    status, out = check_shifted(data, scratch, "coco", capsys)
    assert status == 1 and out.count("has the value 11, which stands for no class") == 2 * 3  # of both benchmarks


@pytest.fixture
def whole(data, monkeypatch):
    """Miniatures count as whole datasets."""
    for name in filter(data[1].get, DatasetCatalog.list()):
        monkeypatch.setitem(vars(MetadataCatalog.get(name)), "num_images", (len(data[1][name]),))


@pytest.mark.fault("a whole dataset whose label maps lack values of the release", "prepare names the values")
@pytest.mark.parametrize(
    "name, value", [("voc", 20), ("context", 59), ("coco", 255), ("cityscapes", 18), ("ade20k", 0), ("ade847", 65535)]
)
def test_values_that_are_missing_are_told(data, scratch, whole, monkeypatch, name, value, capsys):
    def renumber(values: np.ndarray, _: str) -> np.ndarray:
        return np.where(values == value, 1, values).astype(values.dtype)

    monkeypatch.setattr(sys.modules[__name__], "shift", renumber)
    status, out = check_shifted(data, scratch, name, capsys)
    (problem, *_) = [line for line in out.splitlines() if "no label has" in line]
    assert status == 1 and re.search(rf"no label has the value.* {value}\b", problem)


@pytest.mark.parametrize("name", ["voc", "coco", "ade20k", "ade847", "context459", "lvis"])
def test_nothing_is_wrong_with_a_whole_dataset(data, scratch, whole, name, capsys):
    os.environ["DETECTRON2_DATASETS"] = str(data[0])
    assert scratch[2](name, "--check", "--processes", 1, capsys=capsys)[0] == 0


def test_what_a_whole_dataset_must_have():
    """All values of its labels; of hundreds of classes, many are in no image."""
    required = {name: MetadataCatalog.get(name).required_values for name in BENCHMARKS}
    assert {name: len(values) for name, values in required.items()} == {
        "zeroshot_voc_val": 22,
        "zeroshot_voc20_val": 22,
        "zeroshot_context_val": 60,
        "zeroshot_context59_val": 60,
        "zeroshot_coco_object_val": 81,
        "zeroshot_coco_stuff_val": 172,
        "zeroshot_cityscapes_val": 20,
        "zeroshot_ade20k_val": 151,
        "zeroshot_ade847_val": 1,
        "zeroshot_context459_val": 0,
        "zeroshot_lvis_val": 1,
    }


def test_object_from_instances(scratch, capsys):
    """Alone it serves COCO-Object; beside COCO-Stuff's maps, which stay in use, the difference is said."""
    root, downloads, run_here = scratch
    truth = distributed.coco_instances(downloads)
    options = ["--from-instances", "--source", downloads / "val2017.zip", downloads / "annotations_trainval2017.zip"]
    run_here("coco", *options, "--processes", 1, capsys=capsys)
    name = "zeroshot_coco_object_val"
    assert "instancemaps" in DatasetCatalog.get(name)[0]["sem_seg_file_name"]
    assert evaluate(name, truth.get, root / "o")["mIoU"] == 100
    _, out = run_here("coco", *options, downloads / "stuffthingmaps_trainval2017.zip", capsys=capsys)
    stuff = distributed.coco(root)["zeroshot_coco_object_val"]
    agree = 100 * np.mean([stuff[key] == truth[key] for key in truth])
    assert f"{agree:.2f} % of pixels agree" in out
    assert "stuffthingmaps" in DatasetCatalog.get(name)[0]["sem_seg_file_name"]


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MALFORMED = {
    **{
        f"no {key}": (lambda content, key=key: content["annotations"][1].pop(key), f"annotation {{id}} has no '{key}'")
        for key in ("image_id", "category_id", "area", "segmentation")
    },
    "category 0": (lambda content: content["annotations"][1].update(category_id=0), "{id} has the category_id 0"),
    "two points": (lambda content: content["annotations"][1].update(segmentation=[[1, 2, 3, 4]]), "{id} has a segm"),
    "RLE of another size": (
        lambda content: content["annotations"][1].update(segmentation={"size": [32, 24], "counts": [32 * 24]}),
        "{id} has RLE of the size [32, 24]",
    ),
    "unknown image": (lambda content: content["annotations"][1].update(image_id=777), "{id} is of image 777"),
    "no height": (lambda content: content["images"][0].pop("height"), "image 10 has no 'height'"),
}


@pytest.mark.fault("preparing COCO-Object or LVIS from malformed annotations", "one error names file and annotation")
@pytest.mark.parametrize("fault", MALFORMED)
@pytest.mark.parametrize("name, path", [("coco", "annotations/instances_val2017.json"), ("lvis", "lvis_v1_val.json")])
def test_malformed_annotations_are_told(scratch, name, path, fault, capsys):
    root, downloads, run_here = scratch
    distributed.coco_instances(root)
    archive = root / "annotations_trainval2017.zip" if name == "coco" else downloads / "lvis_v1_val.json.zip"
    shutil.unpack_archive(archive, root)
    change, part = MALFORMED[fault]
    key = json.loads((root / path).read_text())["annotations"][1]["id"]
    change_json(root / path, change)
    message, _ = run_here(name, *["--from-instances"] * (name == "coco"), "--source", root / path, capsys=capsys)
    assert message.startswith(f"error: {root / name}") and Path(path).name in message
    assert part.format(id=key) in message and not list(root.rglob("*.png"))


@pytest.mark.fault("preparing COCO-Object from an annotation without iscrowd", "one error names file and annotation")
def test_crowds_must_be_said(scratch, capsys):
    root, _, run_here = scratch
    distributed.coco_instances(root)
    shutil.unpack_archive(root / "annotations_trainval2017.zip", root)
    path = root / "annotations/instances_val2017.json"
    change_json(path, lambda content: content["annotations"][4].pop("iscrowd"))
    message, _ = run_here("coco", "--from-instances", "--source", path, capsys=capsys)
    assert "instances_val2017.json: annotation 4 has no 'iscrowd'" in message


@pytest.mark.fault("annotations whose categories are numbered otherwise than COCO's or LVIS's", "one error names both")
@pytest.mark.parametrize("name, path", [("coco", "annotations/instances_val2017.json"), ("lvis", "lvis_v1_val.json")])
def test_renumbered_categories_are_told(scratch, name, path, capsys):
    """From 1 to 80, or from 0 to 1202; else a 'dog' would be drawn as a 'cat'."""
    root, downloads, run_here = scratch
    distributed.coco_instances(root)
    archive = root / "annotations_trainval2017.zip" if name == "coco" else downloads / "lvis_v1_val.json.zip"
    shutil.unpack_archive(archive, root)

    def renumber(content: dict) -> None:
        first = 1 if name == "coco" else 0
        new_ids = {category["id"]: k for k, category in enumerate(content["categories"], start=first)}
        for category in content["categories"]:
            category["id"] = new_ids[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = new_ids[annotation["category_id"]]

    change_json(root / path, renumber)
    message, _ = run_here(name, *["--from-instances"] * (name == "coco"), "--source", root / path, capsys=capsys)
    expected = "category 12 is 'stop sign'; expected" if name == "coco" else "category 0 is 'aerosol can'; expected"
    assert message.startswith("error: ") and expected in message and not list(root.rglob("*.png"))


@pytest.mark.fault("annotations whose height and width are not their picture's", "one error names the picture")
def test_annotated_sizes_are_the_pictures(scratch, capsys):
    """In all preparations that draw labels of a size that a file says; no wrong label is left behind."""
    root, downloads, run_here = scratch
    distributed.coco_instances(root)
    for archive in ("annotations_trainval2017.zip", downloads / "lvis_v1_val.json.zip"):
        shutil.unpack_archive(root / archive, root)
    for archive in COMMANDS["cityscapes"]:
        shutil.unpack_archive(downloads / archive, root / "cityscapes")

    def swap(content: dict) -> None:
        content["images"][0].update(height=distributed.SIZE[1], width=distributed.SIZE[0])

    # COCO and LVIS
    for name, path, key in (
        ("coco", "annotations/instances_val2017.json", "000000000010"),
        ("lvis", "lvis_v1_val.json", "000000000010"),
    ):
        change_json(root / path, swap)
        change_json(root / path, lambda content: content["annotations"].__setitem__(slice(None), []))
        sources = [root / path, downloads / "val2017.zip", downloads / "lvis_val2017.zip", downloads / "train2017.zip"]
        options = [*["--from-instances"] * (name == "coco"), "--source", *sources, "--processes", 1]
        message, _ = run_here(name, *options, capsys=capsys)
        assert message.startswith("error: 1 of") and f"{key}.jpg, got (32, 24), expect (24, 32)" in message
        assert not list(root.rglob(f"{key}.png"))

    # Cityscapes
    path = next((root / "cityscapes/gtFine/val/lindau").glob("*.json"))
    change_json(path, lambda content: content.update(imgHeight=distributed.SIZE[1], imgWidth=distributed.SIZE[0]))
    message, _ = run_here("cityscapes", "--processes", 1, capsys=capsys)
    assert str(path) in message and "got (32, 24), expect (24, 32)" in message
    assert [label.parent.name for label in root.rglob("*_labelTrainIds.png")] == ["frankfurt"]


def test_empty_annotations_are_left_out(scratch, capsys, caplog):
    """With a warning that counts them."""
    root, downloads, run_here = scratch
    truth = distributed.coco_instances(root)
    shutil.unpack_archive(root / "annotations_trainval2017.zip", root)
    path = root / "annotations/instances_val2017.json"
    empty = {"id": 99, "image_id": 10, "category_id": 1, "iscrowd": 0, "area": 0, "segmentation": []}
    change_json(path, lambda content: content["annotations"].append(empty))
    options = ["--source", path, downloads / "val2017.zip", "--processes", 1]
    _, out = run_here("coco", "--from-instances", *options, capsys=capsys)
    assert "zeroshot_coco_object_val: 3 images" in out and "1 of 10 annotations" in caplog.text
    assert evaluate("zeroshot_coco_object_val", truth.get, root / "o")["mIoU"] == 100


def test_full_ade20k_is_shrunk_as_elsewhere(scratch, capsys):
    """Where both sides are longer than 512."""
    root, _, run_here = scratch
    truth = distributed.ade847(root, large=(520, 1040))["zeroshot_ade847_val"]
    options = ("--processes", 1)
    assert "zeroshot_ade847_val: 2 images" in run_here("ade847", *options, capsys=capsys)[1]
    small, large = DatasetCatalog.get("zeroshot_ade847_val")
    with Image.open(small["file_name"]) as image, Image.open(small["sem_seg_file_name"]) as label:
        assert image.size == label.size == distributed.SIZE[::-1]
    with Image.open(large["file_name"]) as image, Image.open(large["sem_seg_file_name"]) as label:
        assert image.size == label.size == (1024, 512) and label.mode == "I;16"
        shrunk = np.asarray(label)

    # As OpenCV's nearest
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    whole = truth["ADE_val_00000002"].astype(np.float32)
    expected = cv2.resize(whole, (1024, 512), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(shrunk, np.where(expected < 0, 65535, expected))

    # What is whole is kept, what is broken is made again
    before = Path(small["sem_seg_file_name"]).stat().st_mtime_ns
    Path(large["file_name"]).write_bytes(b"cut")
    assert "could not be read" not in run_here("ade847", *options, capsys=capsys)[1]
    assert Path(small["sem_seg_file_name"]).stat().st_mtime_ns == before


@pytest.mark.fault("full ADE20K with a label image that is cut", "one error names it, after the others are done")
def test_a_broken_label_image_of_full_ade20k_is_told(scratch, capsys):
    root, downloads, run_here = scratch
    shutil.unpack_archive(downloads / "ADE20K_2021_17_01.zip", root)
    (source,) = root.glob("**/ADE_val_00000001_seg.png")
    source.write_bytes(source.read_bytes()[:100])
    message, _ = run_here("ade847", "--processes", 1, capsys=capsys)
    assert "1 of 2 failed (converting)" in message and f"unreadable image: {source}" in message
    assert [path.stem for path in root.glob("**/annotations_detectron2/**/*.tif")] == ["ADE_val_00000002"]


def test_full_context_of_other_projects_is_used(scratch, data, tmp_path_factory, capsys):
    root, _, run_here = scratch
    other = tmp_path_factory.mktemp("other") / "pcontext_full"
    shutil.copytree(data[0] / "pcontext_full", other)
    os.environ["DETECTRON2_DATASETS"] = str(root)
    _, out = run_here("context459", "--source", other, capsys=capsys)
    assert "zeroshot_context459_val: 2 images" in out
    shutil.rmtree(root / "pcontext_full")
    shutil.copytree(other, root / "pcontext_full")
    assert "zeroshot_context459_val: 2 images" in run_here("context459", "--check", capsys=capsys)[1]


def test_split_of_full_context_may_be_of_its_other_distribution(scratch, data, capsys):
    root, _, run_here = scratch
    os.environ["DETECTRON2_DATASETS"] = str(root)
    for part in ("JPEGImages", "trainval"):
        shutil.copytree(data[0] / "VOC2010" / part, root / "VOC2010" / part)
    message, _ = run_here("context459", "--processes", 1, capsys=capsys)
    assert "ImageSets/Main/val.txt, and no trainval_merged.json" in message

    phases = {"2008_000001.jpg": "val", "2008_000002.jpg": "train", "2008_000009.jpg": "train"}
    images = [{"file_name": name, "phase": phase} for name, phase in phases.items()]
    (root / "VOC2010/trainval_merged.json").write_text(json.dumps({"images": images}))
    assert "zeroshot_context459_val: 1 images" in run_here("context459", "--processes", 1, capsys=capsys)[1]


@pytest.mark.fault("a damaged list of the split of Context-459", "one error names it")
@pytest.mark.parametrize("text", ["{cut", "[]", '{"images": [{}]}'])
def test_a_damaged_split_of_full_context_is_told(tmp_path, text):
    (tmp_path / "trainval_merged.json").write_text(text)
    with pytest.raises(ValueError, match="trainval_merged.json is no list of PASCAL Context's images"):
        context459.read_split(tmp_path)


@pytest.mark.fault("another release of ADE20K in place of the full one of 2021", "one error says what is expected")
def test_other_release_of_ade20k_is_told(scratch, capsys):
    root, downloads, run_here = scratch
    challenge = downloads / "ADEChallengeData2016.zip"
    message, _ = run_here("ade847", "--source", challenge, capsys=capsys)
    assert "ADEChallengeData2016.zip: no images/ADE" in message and "ADE20K_2021_17_01.zip" in message
    shutil.unpack_archive(challenge, root)
    (root / "ADEChallengeData2016").rename(root / "ADE20K_2021_17_01")
    message, _ = run_here("ade847", capsys=capsys)
    assert "no folder" in message and "ADE20K_2021_17_01.zip" in message


@pytest.mark.fault("labels of 8 bits, or values of no class, in a benchmark of hundreds of classes", "each is named")
def test_labels_of_too_few_bits_are_told(scratch, capsys):
    root, downloads, run_here = scratch
    run_here("ade847", "--source", downloads / "ADE20K_2021_17_01.zip", "--processes", 1, capsys=capsys)
    first, second = sorted((root / "ADE20K_2021_17_01/annotations_detectron2/validation").iterdir())
    Image.fromarray(np.full(distributed.SIZE, 255, np.uint8)).save(first)
    Image.fromarray(np.full(distributed.SIZE, 847, np.uint16)).save(second)
    status, out = run_here("ade847", "--check", capsys=capsys)
    assert status == 1 and f"{first} has 8 bits a pixel" in out and f"{second} has the value 847" in out


@pytest.mark.fault("a MATLAB file without its labels; a folder that cannot be written", "one error names it")
def test_full_context_names_what_is_wrong(scratch, capsys):
    root, downloads, run_here = scratch
    options = ["--source", *(downloads / file for file in COMMANDS["context459"]), "--processes", 1]
    run_here("context459", *options, capsys=capsys)
    label = sorted((root / "pcontext_full/val/label").iterdir())[0]
    label.unlink()
    source = root / f"VOC2010/trainval/{label.stem}.mat"
    savemat(source, {"Labels": np.ones((2, 2))})
    message, _ = run_here("context459", "--processes", 1, capsys=capsys)
    assert f"{source} has no LabelMap" in message

    shutil.rmtree(root / "pcontext_full")
    (root / "pcontext_full").write_text("")
    message, _ = run_here("context459", "--processes", 1, capsys=capsys)
    assert message.startswith("error: ") and str(root / "pcontext_full") in message


@pytest.mark.parametrize(
    "name, part", [("voc", "no list"), ("cityscapes", "no folder"), ("lvis", "lvis_v1_val.json"), ("coco", "val2017")]
)
def test_nothing_there_says_what_to_get(scratch, name, part, capsys):
    message, _ = scratch[2](name, capsys=capsys)
    assert part in message and "--source" in message and "DETECTRON2_DATASETS" in message and "http" in message


def spoil(path: Path, fault: str) -> None:
    """Damage an archive as downloads and disks do, or make it one that cannot be unpacked."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if fault.startswith("flipped"):  # compressed or not, this is within a file
        content[middle] ^= 0xFF
    elif fault == "flipped checksum":
        content[-8] ^= 0xFF  # of the whole stream
    elif fault == "cut within a header":
        del content[700:]
    elif fault.startswith("cut"):
        del content[middle:]
    elif fault in ("encrypted", "unknown compression"):
        for signature, flags in ((rb"PK\x01\x02", 8), (rb"PK\x03\x04", 6)):
            for start in (match.start() + flags for match in re.finditer(signature, bytes(content))):
                content[start : start + 4] = b"\1\0\0\0" if fault == "encrypted" else b"\0\0\x09\0"
    elif fault == "web page":
        content[:] = b"<html>not found</html>"
    path.write_bytes(content)


@pytest.mark.fault("preparing from an archive that is damaged or encrypted", "one error names it, nothing half is left")
@pytest.mark.parametrize(
    "suffix, fault",
    [
        *((".zip", fault) for fault in ("flipped", "cut", "encrypted", "unknown compression", "web page")),
        *((".tar", fault) for fault in ("cut", "cut within a header", "web page")),
        *((".tar.gz", fault) for fault in ("flipped", "flipped checksum", "cut", "web page")),
        *((suffix, "cut") for suffix in (".ZIP", ".TAR", ".Tar.GZ", ".TGZ", ".tar.bz2", ".tar.xz")),
    ],
)
def test_damaged_archives_are_named(scratch, suffix, fault, capsys):
    """Whole archives of these names are read; of a damaged one with a checksum, no file is taken."""
    root, downloads, run_here = scratch
    kind = {"gz": "gztar", "tgz": "gztar", "bz2": "bztar", "xz": "xztar"}.get(suffix.lower().rpartition(".")[2])
    source = root / f"source{suffix}"
    shutil.unpack_archive(downloads / "ADEChallengeData2016.zip", root / "unpacked")
    made = shutil.make_archive(str(root / "made"), kind or suffix[1:].lower(), root / "unpacked")
    Path(made).rename(source)
    prepared = root / "ADEChallengeData2016"
    assert "2 images" in run_here("ade20k", "--source", source, "--processes", 1, capsys=capsys)[1]

    shutil.rmtree(prepared)
    spoil(source, fault)
    message, _ = run_here("ade20k", "--source", source, "--processes", 1, capsys=capsys)
    expected = "cannot be unpacked" if fault in ("encrypted", "unknown compression") else "is broken"
    assert message.startswith(f"error: {source} {expected}") and "\n" not in message
    assert not list(root.rglob("*.tmp"))
    if suffix.lower().endswith("gz"):
        assert not prepared.exists()


@pytest.mark.fault("two files in an archive for one place of a dataset", "one error names both")
def test_files_that_come_twice_are_told(scratch, capsys):
    """Of one name or of two folders; which of them counts, nobody can tell."""
    root, downloads, run_here = scratch
    name = "ADEChallengeData2016/images/validation/a.jpg"
    for names in ((name, name), (name, f"copy/{name}")):
        with zipfile.ZipFile(root / "ADEChallengeData2016.zip", "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for size, member in enumerate(names):
                archive.writestr(member, b"x" * size)
        message, _ = run_here("ade20k", capsys=capsys)
        assert message.startswith("error: ") and all(member in message for member in names)


@pytest.mark.fault("a disk that is full while an archive is unpacked", "one error names the file; the next run goes on")
def test_full_disk_is_named(scratch, monkeypatch, capsys):
    """Nothing half-written counts as done."""
    root, downloads, run_here = scratch
    write = Path.write_bytes

    def write_half(path: Path, content: bytes) -> None:
        if "val_00000002" in path.name:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    options = ("--source", downloads / "ADEChallengeData2016.zip", "--processes", 1)
    monkeypatch.setattr(Path, "write_bytes", write_half)
    message, _ = run_here("ade20k", *options, capsys=capsys)
    assert message.startswith("error: ") and "No space left" in message and "ADE_val_00000002" in message
    assert not list(root.rglob("*00000002*"))
    monkeypatch.undo()
    os.environ["DETECTRON2_DATASETS"] = str(root)
    assert "2 images" in run_here("ade20k", *options, capsys=capsys)[1]


@pytest.mark.fault("preparing without shared memory (/dev/shm) for its processes", "one error says what to do")
def test_missing_shared_memory_is_told(scratch, monkeypatch, capsys):
    """The system's own message is that of a full disk or a missing file."""
    root, downloads, run_here = scratch
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    message, _ = run_here("ade20k", "--source", downloads / "ADEChallengeData2016.zip", capsys=capsys)
    assert message.startswith("error: ") and "/dev/shm" in message and not list(root.iterdir())


def test_broken_sources_of_labels_are_all_named(scratch, capsys):
    root, downloads, run_here = scratch
    options = ["--source", *(downloads / file for file in COMMANDS["cityscapes"]), "--processes", 1]
    run_here("cityscapes", *options, capsys=capsys)
    for path in (root / "cityscapes").rglob("*_labelTrainIds.png"):
        path.unlink()
    first, second = sorted((root / "cityscapes").rglob("*_polygons.json"))
    first.write_text(first.read_text().replace("road", "no such label"))
    second.write_text("{")
    message, _ = run_here("cityscapes", "--processes", 1, capsys=capsys)
    assert "2 of 2 failed" in message and str(first) in message and str(second) in message
    assert "label 'no such label' is unknown" in message and "bicycle" in message and "SystemExit" not in message


def test_deleted_objects_and_groups_of_cityscapes_have_any_label(scratch, capsys):
    """As cityscapesscripts reads them; it also prints, which nobody sees."""
    root, downloads, run_here = scratch
    for archive in COMMANDS["cityscapes"]:
        shutil.unpack_archive(downloads / archive, root / "cityscapes")
    path = next((root / "cityscapes/gtFine/val/lindau").glob("*.json"))
    deleted = {"label": "unknown", "polygon": [[0, 0], [5, 0], [5, 5]], "deleted": 1}
    change_json(path, lambda content: content["objects"].append(deleted))
    assert "zeroshot_cityscapes_val: 2 images" in run_here("cityscapes", "--processes", 1, capsys=capsys)[1]


@pytest.mark.fault("._* and __MACOSX in archives and unpacked folders", "no file of a dataset")
@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes", "coco"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_leftovers_of_macos_are_no_files(scratch, tmp_path_factory, name, is_packed, capsys):
    """As macOS packs an archive, and as it leaves them beside each file of an unpacked folder on a foreign disk."""
    root, downloads, run_here = scratch
    folder = tmp_path_factory.mktemp("unpacked")
    for file in COMMANDS[name]:
        shutil.unpack_archive(downloads / file, folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        for leftover in (path, folder / "__MACOSX" / path.relative_to(folder)):
            leftover.parent.mkdir(parents=True, exist_ok=True)
            leftover.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\xff")
    source = folder
    if is_packed:
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        write = distributed.write_tar if name == "voc" else distributed.write_zip
        source = write(tmp_path_factory.mktemp("packed") / f"packed.{write.__name__[6:]}", contents)
    status, out = run_here(name, "--source", source, "--processes", 1, capsys=capsys)
    assert status == 1 and all("images; expected" in line for line in out.split("problems:\n")[1].splitlines()), out
    assert not list(root.rglob("._*"))

    # Beside the files in place, too
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\xff")
    assert run_here(name, "--source", source, "--processes", 1, capsys=capsys) == (status, out)
    assert run_here(name, "--check", "--processes", 1, capsys=capsys) == (status, out)


OUTSIDE = {
    "ade847": "ADE20K_2021_17_01/images/ADE/../../../outside/ADE_val_1.jpg",
    "cityscapes": "gtFine/val/../outside_gtFine_polygons.json",
}


@pytest.mark.fault("an archive's file whose name leads out of its folder", "one error names it, nothing is written")
@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_archives_cannot_write_outside(scratch, name, suffix, capsys):
    root, _, run_here = scratch
    write = distributed.write_zip if suffix == "zip" else distributed.write_tar
    archive = write(root / f"made.{suffix}", {OUTSIDE[name]: b"x"})
    message, _ = run_here(name, "--source", archive, "--processes", 1, capsys=capsys)
    assert message.startswith(f"error: {archive}") and OUTSIDE[name].partition("/")[2].rpartition("/")[2] in message
    assert not [*root.rglob("*outside*"), *root.parent.glob("outside*")]


@pytest.mark.fault("a list or JSON of a release with IDs that lead out of its folder", "one error names list and ID")
@pytest.mark.parametrize("name", ["context", "context459", "coco", "lvis"])
def test_lists_cannot_name_files_outside(scratch, name, capsys):
    """Labels are written and images are linked by these IDs."""
    root, downloads, run_here = scratch
    options, outside = ["--processes", 1], "../../../outside"
    if name.startswith("context"):
        for file in ("VOCtrainval_03-May-2010.tar", "trainval.tar.gz"):
            shutil.unpack_archive(downloads / file, root / "unpacked")
        path = next(root.glob("unpacked/**/ImageSets/Main/val.txt"))
        (path.parent / "train.txt").write_text(outside)
        path.write_text(outside)
        options += ["--source", root / "unpacked", downloads / "labels.txt"]
        path = path.name.replace("val", "train") if name == "context" else path.name
    elif name == "coco":
        distributed.coco_instances(root)
        shutil.unpack_archive(root / "annotations_trainval2017.zip", root)
        path = root / "annotations/instances_val2017.json"
        change_json(path, lambda content: content["images"][0].update(id=outside))
        change_json(path, lambda content: content.update(annotations=[]))
        options += ["--from-instances", "--source", path]
    else:
        shutil.unpack_archive(downloads / "lvis_v1_val.json.zip", root)
        path, outside = root / "lvis_v1_val.json", "../outside"
        url = f"http://images.cocodataset.org/{outside}.jpg"
        change_json(path, lambda content: content["images"][0].update(coco_url=url))
        options += ["--source", path]
    message, _ = run_here(name, *options, capsys=capsys)
    assert message.startswith("error: ") and Path(path).name in message and outside in message
    assert not [*root.rglob("*outside*"), *root.parent.glob("outside*")]


def test_stopped_conversion_keeps_what_is_done(tmp_path):
    """A job that fails does not stop the others."""
    jobs = [tmp_path / f"{i}.png" for i in range(4)]

    with pytest.raises(ValueError, match="1 of 4 failed.*\n  no 2"):
        preparation.convert(_save_but_two, jobs, processes=1, title="test")
    assert [preparation.is_whole(path) for path in jobs] == [True, True, False, True]


def _save_but_two(path) -> None:
    if path.stem == "2":
        raise ValueError("no 2")
    preparation.save_label(np.zeros((2, 2), np.uint8), path)


def test_all_eight_in_one_run(prepared, tmp_path):
    """The paper's config, with a small CLIP for a small machine: one table beside the published row, and files."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.NAME", "tcl_d2://shapes_clip/model.json", "MODEL.TCL.FREEZE", 5]
    options += ["MODEL.CLIP.PRETRAINED", "tcl_d2://shapes_clip/weights.safetensors", "INPUT.MIN_SIZE_TEST", 24]
    options += ["TEST.ZERO_SHOT.CROP_SIZE", 24, "TEST.ZERO_SHOT.STRIDE", 16, "TEST.ZERO_SHOT.PAMR.DILATIONS", "[1, 2]"]
    options += ["OUTPUT_DIR", tmp_path, "DATALOADER.NUM_WORKERS", 0]
    done = run(prepared[0], "train_net.py", "--config-file", "configs/tcl.yaml", "--eval-only", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["dataset"] for row in results["datasets"]] == BENCHMARKS[:8]
    assert results["average"]["mIoU"] == pytest.approx(np.mean([row["mIoU"] for row in results["datasets"]]))
    assert "| published [1] |" in done.stdout and "zeroshot_voc_val: 3 of 1449 images" in done.stdout
