"""Temporary files: those of killed writers are removed, others stay."""

import os
import subprocess

from tcl_d2.utils.files import remove_unfinished


def test_unfinished_files_of_dead_writers_are_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    stay = [f".model.pth.{os.getpid()}.tmp", ".notes.tmp", "model.pth", f"model.pth.{dead.pid}.tmp"]
    for name in (f".model_0000001.pth.{dead.pid}.tmp", *stay):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(stay)
    remove_unfinished(tmp_path / "none")
