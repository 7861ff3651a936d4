"""The small world: the same seed draws the same scenes, captions keep their promises, preparing can be repeated."""

import errno
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from tcl_d2.commands.options.prepare import shapes as shapes_options
from tcl_d2.commands.prepare import shapes
from tcl_d2.data.labels import read_label
from tcl_d2.data.shapes import GROUNDS, HELD_OUT, MIN_VISIBLE, OBJECTS, draw_scene

SCENES = [draw_scene(5, i) for i in range(150)]


def test_same_numbers_same_scene():
    again = draw_scene(5, 7)
    assert np.array_equal(again.image, SCENES[7].image) and again.caption == SCENES[7].caption
    assert not np.array_equal(draw_scene(6, 7).image, SCENES[7].image)


def test_labels_are_classes_and_scenes_have_the_asked_size():
    seen = set(np.concatenate([np.unique(scene.label) for scene in SCENES]).tolist())
    assert seen == set(range(len(OBJECTS) + len(GROUNDS)))
    assert draw_scene(0, 0, size=96).image.shape == (96, 96, 3)


def test_captions_name_only_what_is_seen_and_never_what_is_held_out():
    for scene in SCENES:
        visible = set(np.unique(scene.label).tolist())
        for k, name in enumerate(OBJECTS):
            if name in scene.caption:
                assert k in visible and name not in HELD_OUT, scene.caption
    shown = {OBJECTS[k] for scene in SCENES for k in np.unique(scene.label) if k < len(OBJECTS)}
    assert set(HELD_OUT) <= shown  # but they are in the pictures


def test_plain_grounds_are_unlabeled():
    scenes = [draw_scene(1, i, plain=1.0) for i in range(5)]
    assert all((scene.label == 255).any() and not any(g in scene.caption for g in GROUNDS) for scene in scenes)


def prepare(root, *options):
    shapes.main(shapes_options.argument_parser().parse_args(["--root", str(root), *options]))


def test_preparing_is_whole_repeatable_and_follows_its_numbers(tmp_path, capsys):
    root = tmp_path / "shapes"
    prepare(root, "--train", "30", "--labeled", "3", "--val", "2")
    shard = root / "train/00000.tar"
    with tarfile.open(shard) as tar:
        assert len(tar.getnames()) == 60
    assert json.loads((root / "train/00000_stats.json").read_text())["successes"] == 30
    assert len(list((root / "val/labels").iterdir())) == 2 and not list(root.rglob("*.tmp"))
    time = shard.stat().st_mtime_ns
    prepare(root, "--train", "30", "--labeled", "3", "--val", "2")
    assert "is ready" in capsys.readouterr().out
    assert shard.stat().st_mtime_ns == time
    prepare(root, "--train", "20", "--labeled", "3", "--val", "2")
    with tarfile.open(shard) as tar:
        assert len(tar.getnames()) == 40


def test_labeled_scenes_are_those_of_the_captions_and_come_to_a_world_that_has_none(tmp_path):
    """A world of before there were any keeps its shards."""
    prepare(tmp_path, "--train", "4", "--labeled", "3", "--val", "1")
    for index in range(3):
        scene = draw_scene(0, index)
        for folder, array in (("images", scene.image), ("labels", scene.label)):
            assert np.array_equal(np.asarray(Image.open(tmp_path / f"labeled/{folder}/{index:05d}.png")), array)

    shard = tmp_path / "train/00000.tar"
    time = shard.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "labeled")
    (tmp_path / "world.json").write_text('{"train": 4, "val": 1, "seed": 0}')
    prepare(tmp_path, "--train", "4", "--labeled", "2", "--val", "1")
    assert shard.stat().st_mtime_ns == time and len(list((tmp_path / "labeled/labels").iterdir())) == 2


@pytest.mark.fault(
    "a disk that is full while the small world is drawn", "one error names the file; the next run goes on"
)
def test_full_disk_is_named(tmp_path, monkeypatch):
    options = ("--train", "4", "--labeled", "3", "--val", "1", "--processes", "1")

    def full(path: Path, *_) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    for method, name in (("write_bytes", "00000.png"), ("write_text", "started.json")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(Path, method, full)
            prepare(tmp_path, *options)
        assert str(stop.value).startswith("error: ") and "No space left" in str(stop.value) and name in str(stop.value)
    prepare(tmp_path, *options)
    assert (tmp_path / "world.json").exists()


@pytest.mark.parametrize("option", ["--train", "--labeled", "--val"])
def test_nothing_to_draw_is_refused(tmp_path, option):
    with pytest.raises(SystemExit, match="at least 1"):
        prepare(tmp_path, option, "0")


# ------------------------------------------------------------------------------------ objects


def test_annotations_are_the_objects_of_the_labels(in_world):
    """As Detectron2 reads them: masks, boxes, and panoptic segments, whose void are objects that hardly show."""
    labels = [read_label(row["sem_seg_file_name"]) for row in DatasetCatalog.get("shapes_val")]
    instances, panoptic = DatasetCatalog.get("shapes_instances_val"), DatasetCatalog.get("shapes_panoptic_val")
    assert len(labels) == len(instances) == len(panoptic) == 12
    for label, row, segments in zip(labels, instances, panoptic):
        visible = {k for k in range(len(OBJECTS)) if (label == k).sum() >= MIN_VISIBLE}
        assert {annotation["category_id"] for annotation in row["annotations"]} == visible
        for annotation in row["annotations"]:
            mask = pycocotools.mask.decode(annotation["segmentation"]).astype(bool)
            assert np.array_equal(mask, label == annotation["category_id"])
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y, width, height = annotation["bbox"]
            assert [x, y, x + width - 1, y + height - 1] == [columns[0], rows[0], columns[-1], rows[-1]]

        assert segments["file_name"].endswith(f"{segments['image_id']:05d}.png")
        with Image.open(segments["pan_seg_file_name"]) as picture:
            ids = np.asarray(picture).astype(int) @ [1, 256, 256**2]
        is_void = (label < len(OBJECTS)) & ~np.isin(label, list(visible))
        assert np.array_equal(ids, np.where(is_void, 0, label.astype(int) + 1))
        assert {info["id"]: info["area"] for info in segments["segments_info"]} == {
            index: (ids == index).sum() for index in np.unique(ids) if index
        }


def contents(folder: Path) -> dict[Path, bytes]:
    """Return a folder's files but for its lock, which names the process that had it last."""
    return {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def test_a_world_that_was_drawn_before_gets_annotations(in_world, tmp_path):
    """Nothing else in it changes."""
    shutil.copytree(in_world / "shapes", tmp_path / "shapes")
    val = tmp_path / "shapes/val"
    (val / "instances.json").unlink()
    before = contents(tmp_path / "shapes")
    prepare(tmp_path / "shapes", "--train", "300", "--labeled", "12", "--val", "12")
    after = contents(tmp_path / "shapes")
    assert after.pop(val / "instances.json") == (in_world / "shapes/val/instances.json").read_bytes()
    assert after == before
