"""Temporary files: those of killed writers are removed; those of running ones and of other hosts stay. Held paths."""

import os
import subprocess
from pathlib import Path

import pytest

from tcl_d2.utils.files import path_within, remove_unfinished, unfinished_path


def test_unfinished_files_of_dead_writers_are_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = unfinished_path(tmp_path / "model_0000001.pth", dead.pid)
    running = unfinished_path(tmp_path / "model.pth", os.getpid())
    stay = [running.name, ".notes.tmp", "model.pth", left.name[1:], f".model.pth.0badcafe-{dead.pid}.tmp"]
    for name in (left.name, *stay):
        (tmp_path / name).touch()

    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(stay)
    remove_unfinished(tmp_path / "none")


@pytest.mark.parametrize("root", ["/data", "data", ".", "/"])
def test_names_within_a_root_are_joined(root):
    """Dots in a name are no steps up."""
    for name in ("a.png", "below/a.png", "./a.png", "..a/b..png", "..."):
        assert path_within(root, name, "list.txt") == Path(root, name)
    assert path_within("/data", "/data/a.png", "list.txt") == Path("/data/a.png")


@pytest.mark.parametrize("root", ["/data", "data", "."])
@pytest.mark.parametrize(
    "name", ["../a.png", "below/../../a.png", "below/../a.png", "/else/a.png", "/data2/a.png", ".."]
)
def test_names_that_lead_out_of_a_root_are_refused(root, name):
    with pytest.raises(ValueError) as raised:
        path_within(root, name, "list.txt")
    assert all(part in str(raised.value) for part in (root, repr(name), "list.txt"))
