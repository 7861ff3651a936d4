"""Long lists of files: names, shares of processes, and going on from what is done."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_d2.commands.result_folder import RECORD, ResultFolder, result_names
from tcl_d2.commands.segment import argument_parser, segment_share
from tcl_d2.data.shapes import draw_scene
from tests.conftest import ROOT
from tests.running import check_error, run, started

OPTIONS = ("--opts", "TEST.ZERO_SHOT.IMS_PER_BATCH", 2)
COMMAND = ("demo/demo.py", "--refine", "none", "--classes", "brick, lava")


@pytest.fixture
def photos(tmp_path):
    """A folder of five pictures, of two sizes, one of which is broken."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "more/a.png", "more/c.png")):
        Image.fromarray(draw_scene(7, index, size=48).image[: 48 - index]).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def read_labels(folder) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in folder.glob("*_labels.png")}


@pytest.mark.fault("demo --resume: pictures that were added, changed, mended or done", "what is not done is done, once")
def test_what_is_done_is_left_out(world, tmp_path, photos):
    output = tmp_path / "out"
    options = ["--input", photos, "--output", output, "--resume"]
    run(world, *COMMAND, *options)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert {"a_1.json", "a_2.png", "b_labels.png"} < before.keys()

    # Another picture of a name that there is, one that is changed, one that is mended, a result that is lost
    Image.fromarray(draw_scene(7, 9, size=48).image).save(photos / "a.jpg")
    Image.fromarray(draw_scene(7, 5, size=40).image).save(photos / "b.png")
    Image.fromarray(draw_scene(7, 5, size=40).image).save(photos / "broken.jpg")
    (output / "c.json").unlink()
    done = run(world, *COMMAND, *options)
    assert done.returncode == 0 and "2 of 6 images were done before" in done.stdout, done.stderr
    assert done.stdout.count(" -> ") == 4 and "6 of 6 images segmented" in done.stdout

    after = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    same = {name for name in before if before[name] == after[name]}
    assert {name.partition(".")[0].removesuffix("_labels") for name in same} == {"a_1", "a_2"}
    files = json.loads((output / RECORD).read_text())["files"]
    assert files[str(photos / "a.jpg")]["name"] == "a" and files[str(photos / "a.png")]["name"] == "a_1"

    # Without --resume, all are done again, by names of their own
    assert run(world, *COMMAND, *options[:-1]).stdout.count(" -> ") == 6


def test_negative_words_and_parents_are_written(world, tmp_path):
    """In the labels, what negative words took has the index after the last class; areas and heat maps name it."""
    Image.fromarray(draw_scene(seed=7, index=18, size=96, objects=(4, 5)).image).save(tmp_path / "scene.png")
    lines = ["background", "yellow striped < striped", "purple striped < striped", "not: grass; sand"]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    command = ["demo/demo.py", tmp_path / "scene.png", "--classes", tmp_path / "words.txt", "--heat-maps"]
    expected = ["background", "yellow striped", "purple striped", "not: grass | sand"]
    for options, names in ([], expected), (["--specificity", "parents"], ["background", "striped", expected[3]]):
        output = tmp_path / f"out{len(options)}"
        done = run(world, *command, "--output", output, *options)
        assert done.returncode == 0 and "not: grass | sand 8" in done.stdout, done.stderr
        areas = json.loads((output / "scene.json").read_text())["areas"]
        assert list(areas) == names and (output / f"scene_{len(names) - 1}_not__grass___sand.png").exists()
        labels = read_labels(output)["scene_labels.png"]
        assert (labels == len(names) - 1).mean() == pytest.approx(areas[expected[3]], abs=1e-6)

    check_error(run(world, "demo/demo.py", tmp_path / "scene.png", "--classes", "lava, not: lava"), "is asked for too")


@pytest.mark.fault("demo --resume: other words, another model, or a damaged record", "refused: what differs; all stays")
def test_results_of_other_settings_are_not_gone_on_from(world, tmp_path, photos):
    output = tmp_path / "out"
    options = ["--input", photos / "a.png", "--output", output]
    run(world, *COMMAND, *options)
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    done = run(world, *COMMAND[:-1], "brick, sand", *options, "--resume", "--no-overlay")
    check_error(done, "--resume", "other settings (classes, --no-overlay)", "another folder")
    done = run(world, *COMMAND, *options, "--resume", "--opts", "TEST.ZERO_SHOT.KP_WEIGHT", "0.5")
    check_error(done, "other settings (TEST.ZERO_SHOT)")
    done = run(world, *COMMAND, *options, "--resume", "--opts", "TEST.ZERO_SHOT.IMS_PER_BATCH", "2")
    assert done.returncode == 0 and "1 of 1 images were done before" in done.stdout  # results do not depend on it
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before

    (output / RECORD).write_text("{")
    check_error(run(world, *COMMAND, *options, "--resume"), f"{RECORD} is no record of results")


@pytest.mark.parametrize(
    "options, parts",
    [
        (["--output", "/proc"], ("--output /proc cannot be the folder of the results",)),
        (["--num-gpus", "99"], ("--num-gpus is 99, but torch finds",)),
        (["--num-processes", "0"], ("at least 1",)),
        (["--opts", "MODEL.DEVICE", "gpu"], ("MODEL.DEVICE is 'gpu', which torch does not know",)),
    ],
)
@pytest.mark.fault("demo: an output folder, GPUs or a device that cannot be used", "one message at the start")
def test_what_is_not_there_is_said_at_the_start(world, tmp_path, photos, options, parts):
    output = [] if "--output" in options else ["--output", tmp_path / "out"]
    check_error(run(world, *COMMAND, "--input", photos, *output, *options), *parts)


@pytest.mark.fault(
    "demo: Ctrl-C while two processes segment a folder with a broken picture", "whole files alone; --resume goes on"
)
def test_a_stopped_run_of_two_processes_is_gone_on_from(world, tmp_path):
    """Results do not depend on the number of processes, and a picture that is named twice is segmented once."""
    folder, output, whole = tmp_path / "photos", tmp_path / "out", tmp_path / "whole"
    (folder / "more").mkdir(parents=True)
    for index in range(24):
        Image.fromarray(draw_scene(7, index, size=40).image).save(folder / f"{'more/' * (index % 2)}{index // 2}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    options = ["--input", folder, f"{folder}/more/../0.png", "--no-overlay", "--resume", "--output"]

    # Stop the two when each has begun
    with started(world, *COMMAND, *options, output, "--num-processes", 2, *OPTIONS) as script:
        first = output / "0_1_labels.png", output / "0_2_labels.png"
        while script.poll() is None and not all(path.exists() for path in first):
            time.sleep(0.01)
        os.killpg(script.pid, signal.SIGINT)
        done = script.wait()
    assert done.returncode == 130 and "Traceback" not in done.stderr and "stopped by SIGINT" in done.stderr
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    count = len(list(output.glob("*.json"))) - 1
    assert 1 < count < 24

    # Go on with one
    done = run(world, *COMMAND, *options, output, *OPTIONS)
    assert done.returncode == 1 and "broken.jpg" in done.stderr and done.stderr.count("left out") == 1
    assert f"{count} of 25 images were done before" in done.stdout and done.stdout.count(" -> ") == 24 - count
    run(world, *COMMAND, *options, whole, *OPTIONS)
    expected = read_labels(whole)
    assert len(expected) == 24 and "0_2_labels.png" in expected
    for name, labels in read_labels(output).items():
        assert np.array_equal(labels, expected.pop(name))
    assert not expected


@pytest.mark.fault("demo: a disk that is full in the middle of a folder", "one message, and whole files alone")
def test_a_full_disk_ends_the_run(tmp_path, photos, monkeypatch):
    save, output = Image.Image.save, tmp_path / "out"

    def save_while_there_is_room(self, path, *args, **kwargs):
        if "b_labels" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", save_while_there_is_room)
    args = argument_parser().parse_args(["--classes", "brick", "--input", str(photos), "--output", str(output)])
    with pytest.raises(SystemExit, match="error: .*No space left on device.*b_labels"):
        segment_share(args, sorted(photos.glob("*.png")))
    assert {path.name for path in output.iterdir()} == {RECORD, "a.png", "a_labels.png", "a.json", "b.png"}


@pytest.mark.fault("demo --no-overlay over results that have overlays", "no overlay stays beside other labels")
def test_the_overlay_of_an_earlier_run_goes_with_its_results(tmp_path):
    folder = ResultFolder(tmp_path / "out")
    for name in ("a.png", "a_labels.png", "a.json", "b.png"):
        (tmp_path / "out" / name).write_text("")
    sources = folder.begin([tmp_path / "a.jpg", tmp_path / "b.jpg"], {})
    assert [source.name for source in sources] == ["a", "b"]
    assert set(os.listdir(tmp_path / "out")) == {"a_labels.png", "b.png", RECORD}  # b.png may be the user's


@pytest.mark.fault(
    "demo without --boxes and --heat-maps over results that have them", "none of them stays beside other labels"
)
def test_boxes_and_heat_maps_of_an_earlier_run_go_with_its_results(world, tmp_path, photos):
    """Those of files that this run does not segment stay, and so do files that no run has written."""
    output = tmp_path / "out"
    options = ["demo/demo.py", "--refine", "none", "--output", output]
    run(world, *options, "--classes", "brick, lava", "--heat-maps", "--boxes", photos / "a.png", photos / "b.png")
    (output / "a_7_notes.png").write_text("the user's")
    expected = set(os.listdir(output)) - {"a_0_brick.png", "a_1_lava.png", "a_boxes.png", "a_boxes.json"}
    done = run(world, *options, "--classes", "grass, ice", photos / "a.png")
    assert done.returncode == 0 and set(os.listdir(output)) == expected, done.stderr


def test_names_of_many_files_are_chosen_in_linear_time(tmp_path):
    """Of which many have one name, and some have taken others' numbers."""
    paths = [tmp_path / f"{index}/{name}.png" for index in range(5000) for name in ("image", f"image_{index}")]
    start = time.perf_counter()
    names = result_names(paths, taken_names=["image_7"])
    assert time.perf_counter() - start < 5
    assert len(set(names)) == len(names) and names[1] == "image_0" and names[15] == "image_7_1"


def test_a_folder_of_results_holds_no_input(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "out/a.png")
    folder = ResultFolder(tmp_path / "out")
    folder.check_inputs([tmp_path / "a.png"])
    for path in (tmp_path / "out/a.png", tmp_path / "link.png"):
        with pytest.raises(ValueError, match="give another folder"):
            folder.check_inputs([path])
    assert os.listdir(tmp_path / "out") == []


# ------------------------------------------------------------------------------------ boxes


def test_boxes_are_written_beside_the_pictures(world, tmp_path):
    """By names that are no other picture's, of a dataset's words; the record says what counts as an object."""
    pytest.importorskip("cv2")
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for index, name in enumerate(("a.png", "a_boxes.png")):
        Image.fromarray(draw_scene(7, index, size=96).image).save(folder / name)
    command = ["demo/demo.py", "--refine", "none", "--classes", "shapes_instances_val", "--boxes", folder]
    done = run(world, *command, "--output", output)
    assert done.returncode == 0, done.stderr

    record = json.loads((output / RECORD).read_text())
    assert record["settings"]["--boxes"] == {"min_area": 30, "connectivity": 8, "max_objects": 100}
    names = [file["name"] for file in record["files"].values()]
    assert len(set(names)) == 2 and "a_boxes" not in names
    for name in names:
        results = json.loads((output / f"{name}_boxes.json").read_text())
        words = json.loads((output / f"{name}.json").read_text())["areas"]
        assert results and all(result["category"] in words and 0 < result["score"] < 1 for result in results)
        assert all(result["image_id"] == name for result in results)
        assert min(Image.open(output / f"{name}_boxes.png").size) >= 480

    without_boxes = [part for part in command if part != "--boxes"]
    check_error(run(world, *without_boxes, "--output", output, "--resume"), "other settings (--boxes)")


@pytest.mark.fault("--boxes for a video", "refused at the start")
def test_boxes_of_a_video(world, tmp_path):
    command = ["demo/demo.py", "--classes", "brick", "--video-input", tmp_path / "a.mp4", "--boxes"]
    check_error(run(world, *command, "--output", tmp_path / "out"), "--boxes", "not on the frames of a video")


@pytest.mark.fault("--boxes without OpenCV", "refused at the start: what to install")
def test_boxes_without_opencv(world, tmp_path, photos):
    words = [str(photos / "a.png"), "--classes", "brick", "--boxes", "--output", str(tmp_path / "out")]
    code = f"import runpy, sys; sys.modules['cv2'] = None; sys.argv[1:] = {words}"
    done = run(world, "-c", f"{code}; runpy.run_path('demo/demo.py', run_name='__main__')")
    check_error(done, "OpenCV", "pip install opencv-python-headless")


@pytest.mark.fault("words that are not ASCII under LANG=C, without UTF-8", "segmented, drawn and written as elsewhere")
def test_words_that_are_not_ascii_need_no_locale(tmp_path):
    """They come as bytes; names of files, boxes and the output have no codes for their letters there."""
    Image.fromarray(draw_scene(seed=7, index=2, size=48).image).save(tmp_path / "a.png")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tcl_d2", "segment", "a.png", "--classes", "läva | 草, böse"]
    command += ["--heat-maps", "--boxes", "--output", "ergebnis ß"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "ergebnis ß/a.json").read_text())["areas"]) == ["läva", "böse"]
    assert (tmp_path / "ergebnis ß/a_0_läva.png").exists()
