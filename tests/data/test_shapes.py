"""The small world: the same seed draws the same scenes, captions keep their promises, preparing can be repeated."""

import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from tcl_d2.data.shapes import GROUNDS, HELD_OUT, OBJECTS, draw_scene
from tests.conftest import ROOT

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
    command = [sys.executable, "datasets/prepare_shapes.py", "--root", str(root), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_preparing_is_whole_repeatable_and_follows_its_numbers(tmp_path):
    root = tmp_path / "shapes"
    assert prepare(root, "--train", "30", "--val", "2").returncode == 0
    shard = root / "train/00000.tar"
    with tarfile.open(shard) as tar:
        assert len(tar.getnames()) == 60
    assert json.loads((root / "train/00000_stats.json").read_text())["successes"] == 30
    assert len(list((root / "val/labels").iterdir())) == 2 and not list(root.rglob("*.tmp"))
    time = shard.stat().st_mtime_ns
    assert "is ready" in prepare(root, "--train", "30", "--val", "2").stdout
    assert shard.stat().st_mtime_ns == time
    assert prepare(root, "--train", "20", "--val", "2").returncode == 0
    with tarfile.open(shard) as tar:
        assert len(tar.getnames()) == 40


@pytest.mark.parametrize("option", ["--train", "--val"])
def test_nothing_to_draw_is_refused(tmp_path, option):
    assert "at least 1" in prepare(tmp_path, option, "0").stderr
