"""OUTPUT_DIR is one run's of a purpose: others are refused, dead ones leave nothing behind."""

import os
import subprocess

import pytest

from tcl_d2.runs.output_folder import output_folder
from tcl_d2.utils.files import unfinished_path
from tests.running import holder


@pytest.mark.fault("two trainings, or two evaluations, in one OUTPUT_DIR", "the second is refused, and names the first")
@pytest.mark.parametrize("purpose, other", [("training", "evaluation"), ("evaluation", "training")])
def test_a_second_run_of_the_same_purpose_is_refused(tmp_path, purpose, other):
    with holder(tmp_path, purpose) as pid:
        for _ in range(2):  # a refused run does not take the name of the first
            with (
                pytest.raises(ValueError, match=f"OUTPUT_DIR .*is taken by another {purpose} .process {pid} "),
                output_folder(str(tmp_path), purpose),
            ):
                pass
        with output_folder(str(tmp_path), other):
            pass


@pytest.mark.fault("a training is killed, while its loader processes still end", "its OUTPUT_DIR is free at once")
def test_a_killed_run_frees_its_folder(tmp_path):
    with holder(tmp_path, "training"):
        pass
    with output_folder(str(tmp_path), "training"):
        pass


@pytest.mark.fault("temporary files of a killed process", "removed at the next start in that folder")
def test_what_killed_writers_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = ("model_0000001.pth", "inference/shapes_val/predictions/1.png")
    left = [unfinished_path(tmp_path / name, dead.pid) for name in names]
    running = unfinished_path(tmp_path / "results.json", os.getpid())
    for path in (*left, running):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    with output_folder(str(tmp_path), "evaluation"):
        assert list(tmp_path.rglob(".*.tmp")) == [running]


@pytest.mark.parametrize("path", ["file", "/proc/none", ""])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, path):
    (tmp_path / "file").touch()
    path = path and str(tmp_path / path)
    with (
        pytest.raises(ValueError, match=f"OUTPUT_DIR ('{path}' is no folder|is empty)"),
        output_folder(path, "training"),
    ):
        pass
