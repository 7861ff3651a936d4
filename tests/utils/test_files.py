"""Temporary files: those of killed writers are removed; those of running ones and of other hosts stay."""

import os
import subprocess

from tcl_d2.utils.files import remove_unfinished, unfinished_path


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
