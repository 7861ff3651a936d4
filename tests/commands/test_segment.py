"""Long lists of files: names, shares of processes, and going on from what is done."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_d2.commands.inputs import find_inputs
from tcl_d2.commands.options.segment import argument_parser
from tcl_d2.commands.result_folder import SETTINGS, ResultFolder, result_names
from tcl_d2.commands.segment import segment_share
from tcl_d2.data.shapes import draw_scene
from tcl_d2.segmentation import Segmentation
from tests.conftest import ROOT
from tests.running import check_error, holder, run, started

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
    paths = folder.rglob("*_labels.png")
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in paths}


def times(folder) -> dict[str, int]:
    """When each file below a folder was written, but for the hidden ones."""
    paths = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in paths}


@pytest.mark.fault("demo --resume: pictures that were added, changed, mended or done", "what is not done is done, once")
def test_what_is_done_is_left_out(world, tmp_path, photos):
    output = tmp_path / "out"
    options = ["--input", photos, "--output", output, "--resume"]
    run(world, *COMMAND, *options)
    before = times(output)
    assert {"a.json", "more/a.png", "b_labels.png"} < before.keys()

    # Another picture, one that is changed, one that is mended, a result that is lost
    Image.fromarray(draw_scene(7, 9, size=48).image).save(photos / "d.jpg")
    Image.fromarray(draw_scene(7, 5, size=40).image).save(photos / "b.png")
    Image.fromarray(draw_scene(7, 5, size=40).image).save(photos / "broken.jpg")
    (output / "more/c.json").unlink()
    done = run(world, *COMMAND, *options)
    assert done.returncode == 0 and "2 of 6 images were done before" in done.stdout, done.stderr
    assert done.stdout.count(" -> ") == 4 and "6 of 6 images segmented" in done.stdout

    same = {name for name, time in times(output).items() if before.get(name) == time}
    assert {name.partition(".")[0].removesuffix("_labels") for name in same} == {"a", "more/a"}
    content = json.loads((output / "d.json").read_text())
    assert content["source"]["path"] == str(photos / "d.jpg") and content["height"] == 48
    assert content["files"].keys() == {"d.png", "d_labels.png"} and content["areas"].keys() == {"brick", "lava"}

    # Without --resume, all are done again
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


@pytest.mark.fault("demo --resume: other words, another model, or damaged settings", "refused: what differs; all stays")
def test_results_of_other_settings_are_not_gone_on_from(world, tmp_path, photos):
    output = tmp_path / "out"
    options = ["--input", photos / "a.png", "--output", output]
    run(world, *COMMAND, *options)
    before = times(output)

    done = run(world, *COMMAND[:-1], "brick, sand", *options, "--resume", "--no-overlay")
    check_error(done, "--resume", "other settings (classes, --no-overlay)", "another folder")
    done = run(world, *COMMAND, *options, "--resume", "--opts", "TEST.ZERO_SHOT.KP_WEIGHT", "0.5")
    check_error(done, "other settings (TEST.ZERO_SHOT)")
    done = run(world, *COMMAND, *options, "--resume", "--opts", "TEST.ZERO_SHOT.IMS_PER_BATCH", "2")
    assert done.returncode == 0 and "1 of 1 images were done before" in done.stdout  # results do not depend on it
    assert times(output).keys() == before.keys() and times(output)["a.json"] == before["a.json"]

    (output / SETTINGS).write_text("[" * 100_000)
    check_error(run(world, *COMMAND, *options, "--resume"), SETTINGS)


@pytest.mark.parametrize(
    "options, parts",
    [
        (["--output", "/proc"], ("--output '/proc' is no folder that can be written",)),
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
        first = output / "0_labels.png", output / "more/0_labels.png"
        while script.poll() is None and not all(path.exists() for path in first):
            time.sleep(0.01)
        os.killpg(script.pid, signal.SIGINT)
        done = script.wait()
    assert done.returncode == 130 and "Traceback" not in done.stderr and "stopped by SIGINT" in done.stderr
    assert not list(output.rglob(".*.tmp"))
    count = len(list(output.rglob("*.json"))) - 1
    assert 1 < count < 24

    # Go on with one
    done = run(world, *COMMAND, *options, output, *OPTIONS)
    assert done.returncode == 1 and "broken.jpg" in done.stderr and done.stderr.count("left out") == 1
    assert f"{count} of 25 images were done before" in done.stdout and done.stdout.count(" -> ") == 24 - count
    run(world, *COMMAND, *options, whole, *OPTIONS)
    expected = read_labels(whole)
    assert len(expected) == 24 and "more/0_labels.png" in expected
    for name, labels in read_labels(output).items():
        assert np.array_equal(labels, expected.pop(name))
    assert not expected


@pytest.mark.fault("two segment runs into one folder at once", "the second is refused, and names the first")
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_second_run_is_refused(world, tmp_path, photos, num_processes):
    """While the first one has stopped, which goes on as if nothing had been."""
    output = tmp_path / "out"
    options = [photos, "--output", output, "--num-processes", num_processes]
    with started(world, *COMMAND, *options, *OPTIONS) as first:
        while first.poll() is None and not (output / SETTINGS).exists():
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGSTOP)
        check_error(run(world, *COMMAND[:-1], "grass", *options), "--output", str(output), f"process {first.pid} ")
        os.killpg(first.pid, signal.SIGCONT)
        done = first.wait()
    assert "4 of 5 images segmented" in done.stdout, done.stderr
    areas = [json.loads((output / f"{name}.json").read_text())["areas"] for name in ("a", "b", "more/a", "more/c")]
    assert all(area.keys() == {"brick", "lava"} for area in areas)
    assert "4 of 5 images were done before" in run(world, *COMMAND, *options, "--resume").stdout


@pytest.mark.fault("index, compare or prepare into a folder that another run of it has", "refused, and names the first")
@pytest.mark.parametrize(
    "purpose, command",
    [
        ("segmentation", ["segment", "--video-input", "../x.mp4", "--classes", "brick", "--output"]),
        ("index", ["index", ".", "--output"]),
        ("comparison", ["compare", "--configs", "shapes/trained.yaml", "--output"]),
        ("preparation", ["prepare", "shapes", "--root"]),
        ("preparation of zeroshot_voc_val", ["prepare", "voc", "--source"]),
    ],
)
def test_other_commands_have_their_folder_alone(world, tmp_path, purpose, command):
    (tmp_path / "shapes").symlink_to(world / "shapes")
    with holder(tmp_path, purpose) as pid:
        check_error(run(tmp_path, "-m", "tcl_d2", *command, tmp_path, folder=tmp_path), "is taken", f"process {pid} ")


@pytest.mark.fault("demo: a disk that is full in the middle of a folder", "one message, and whole files alone")
def test_a_full_disk_ends_the_run(tmp_path, photos, monkeypatch):
    save, output = Image.Image.save, tmp_path / "out"

    def save_while_there_is_room(self, path, *args, **kwargs):
        if "b_labels" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as of a write, without a name
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", save_while_there_is_room)
    args = argument_parser().parse_args(["--classes", "brick", "--input", str(photos), "--output", str(output)])
    with pytest.raises(SystemExit, match="error: .*No space left on device.*out/b"):
        segment_share(args, ResultFolder(output, find_inputs([f"{photos}/*.png"], output)))
    assert {path.name for path in output.iterdir()} == {SETTINGS, "a.png", "a_labels.png", "a.json"}


def write_results(folder: ResultFolder, resume: bool = False, settings: int = 0, **options) -> list[str]:
    """Write what a run writes, of images of one color; return the names of what was done."""
    left = folder.begin({"number": settings}, resume)
    for source in left:
        segmentation = Segmentation(np.zeros((8, 8, 3), np.uint8), ["brick"], np.zeros((8, 8), int))
        segmentation.scores = np.ones((1, 8, 8), np.float32)
        segmentation.save(folder.folder, source.name, state=source.state, **options)
    return [source.name for source in left]


@pytest.fixture
def done(tmp_path, photos):
    """A folder of results of a.png, and of more/a.png, and how to open it again."""
    open_folder = partial(ResultFolder, tmp_path / "out", {photos / name: name for name in ("a.png", "more/a.png")})
    assert write_results(open_folder()) == ["a", "more/a"]
    assert write_results(open_folder(), resume=True) == []
    return tmp_path / "out", open_folder


STATES = ("3", "[1]", "{", "", "[" * 100_000, '{"files": 3}', '{"files": [1]}', '{"files": {"more/a.png": 1}}', "null")


@pytest.mark.fault("demo --resume: results that are missing, cut, or whose JSON is damaged", "they are made again")
@pytest.mark.parametrize("name", ["a_labels.png", "a.png", "a.json"])
def test_damaged_results_are_made_again(done, name):
    output, open_folder = done
    (output / name).unlink()
    assert write_results(open_folder(), resume=True) == ["a"]
    for content in STATES:
        (output / name).write_text(content)
        assert write_results(open_folder(), resume=True) == ["a"]
        assert json.loads((output / "a.json").read_text())["areas"] == {"brick": 1.0}
    assert write_results(open_folder(), resume=True) == []


@pytest.mark.fault("demo --resume: a result of another image, or of other settings", "it is made again")
def test_results_of_other_images_are_made_again(done):
    output, open_folder = done
    content = json.loads((output / "a.json").read_text())
    for change in ({"settings": "0"}, {"source": {**content["source"], "size": 1}}, {"source": 3}, {"files": {}}):
        (output / "a.json").write_text(json.dumps(content | change))
        assert write_results(open_folder(), resume=True) == ["a"]


@pytest.mark.fault("the JSON of a result lists files of others", "they are neither removed nor replaced")
def test_what_a_result_says_decides_of_its_own_files_alone(done, tmp_path):
    output, open_folder = done
    content = json.loads((output / "a.json").read_text())
    names = [
        "more/../../mine.png",
        "a_0_x/../../mine.png",
        "../mine.png",
        str(tmp_path / "mine.png"),
        "ab.png",
        "more/a_boxes.png",
    ]
    names += ["a_notes.png", "a_0_changed.png", "more/a.png", "b_labels.png", "\0", "\ud800"]
    for name in names:
        if name.isprintable():
            (output / name).resolve().write_text("the user's")
    stale = output / "a_1_ice.png"
    stale.write_text("a heat map")
    sizes = {name: 10 for name in names} | {"a_0_changed.png": 3, stale.name: stale.stat().st_size}
    (output / "a.json").write_text(json.dumps(content | {"files": content["files"] | sizes}))

    assert write_results(open_folder(), settings=1) == ["a", "more/a"]
    assert not stale.exists() and (output / "more/a.json").exists()
    for name in names:
        assert not name.isprintable() or name == "more/a.png" or (output / name).resolve().read_text() == "the user's"


@pytest.mark.fault("demo: a file that is no result lies where one will be", "an error names it at the start; it stays")
@pytest.mark.parametrize("name", ["a.png", "a_labels.png", "a.json", "a_boxes.json", "more/a_0_brick.png", SETTINGS])
def test_files_of_others_are_not_replaced(world, tmp_path, photos, name):
    (tmp_path / "out/more").mkdir(parents=True)
    (tmp_path / "out" / name).write_text('["the user\'s"]')
    options = {"heat_maps": ("brick",), "boxes": True}
    with pytest.raises(ValueError, match=name):
        ResultFolder(tmp_path / "out", find_inputs([str(photos)], tmp_path / "out"), **options).begin({})
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [Path(name).name]
    assert (tmp_path / "out" / name).read_text() == '["the user\'s"]'


@pytest.mark.fault("demo --no-overlay over results that have overlays", "no overlay stays beside other labels")
def test_the_overlay_of_an_earlier_run_goes_with_its_results(done):
    """Also where the run before was killed before it said what it had written; one of the user's stays."""
    output, open_folder = done
    (output / "a.json").unlink()
    (output / "more/a.png").unlink()
    (output / "more/a.json").unlink()
    (output / "more/a.png").write_text("the user's")
    write_results(open_folder(overlay=False), overlay=False)
    assert set(times(output)) == {
        *("a_labels.png", "a.json", "more/a_labels.png", "more/a.json", "more/a.png", SETTINGS)
    }


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


@pytest.mark.fault("demo: pictures whose results would have the same names", "every result has a name of its own")
@pytest.mark.parametrize(
    "relatives, expected",
    [
        (["a.png", "more/a.png", "a_1.png"], ["a", "more/a", "a_1"]),
        (["a.png", "a.jpg", "b.png"], ["a.png", "a.jpg", "b"]),
        (["a.png", "B.png", "b.jpg", "a_labels.png"], ["a.png", "B.png", "b.jpg", "a_labels.png"]),
        (["a_0_brick.png", "a.png", "result_settings.png"], ["a_0_brick.png", "a.png", "result_settings.png"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg", "a.png/b"]),
    ],
)
def test_names_are_the_paths_of_the_images(relatives, expected):
    """Without the suffix, unless a result would replace another's, on a disk that takes no heed of case too."""
    names = result_names({Path(relative): relative for relative in relatives}, heat_maps=["brick"])
    assert list(names.values()) == expected


def test_long_names_and_names_that_differ_in_case_alone_are_told_apart():
    relatives = ["a.png", "A.png", "x" * 240 + "1.png", "x" * 240 + "2.png", "a.png.bmp"]
    names = list(result_names({Path(relative): relative for relative in relatives}).values())
    assert len({name.casefold() for name in names}) == 5 and max(map(len, names)) < 120


def test_names_of_many_files_differ():
    relatives = [f"{index}/{name}" for index in range(500) for name in ("image.png", "image.jpg", "image_1.png")]
    names = result_names({Path(relative): relative for relative in relatives}).values()
    assert len(set(names)) == len(relatives)


def test_paths_start_from_what_is_given(photos, tmp_path):
    """From the folder, or from the common parent of files, globs and folders; images that lie together keep names."""
    output = tmp_path / "out"
    assert "more/a.png" in find_inputs([str(photos)], output).values()
    assert list(find_inputs([f"{photos}/*/*.png"], output).values()) == ["a.png", "c.png"]
    assert list(find_inputs([f"{photos}/b.png", f"{photos}/more"], output).values()) == [
        *("b.png", "more/a.png", "more/c.png")
    ]


def test_a_folder_of_results_holds_no_input(tmp_path, photos):
    (tmp_path / "link.png").symlink_to(photos / "more/a.png")
    for path, relative in (
        *((photos / "a.png", "a.png"), (photos / "more/a.png", "more/b.png"), (tmp_path / "link.png", "more/a.png")),
    ):
        with pytest.raises(ValueError, match="give another folder"):
            ResultFolder(photos, {path: relative})
    ResultFolder(tmp_path / "out", {photos / "a.png": "a.png"})
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ regions


@pytest.fixture
def regions(tmp_path):
    """A folder of regions for the pictures a and b: four quarters as a PNG, and two halves as RLE."""
    folder = tmp_path / "regions"
    folder.mkdir()
    numbers = np.kron([[1, 2], [3, 0]], np.ones((24, 24), np.uint8)).astype(np.uint8)
    Image.fromarray(numbers).save(folder / "a.png")
    rle = {"size": [47, 48], "counts": [0, 47 * 24, 47 * 24]}
    (folder / "b.json").write_text(json.dumps([{"segmentation": rle}, {"segmentation": {**rle, "counts": [47 * 48]}}]))
    return folder


def test_regions_get_one_class(world, tmp_path, photos, regions):
    """The most frequent one of their pixels, after another refiner and under another method, too."""
    inputs = [photos / "a.png", photos / "b.png"]
    command = ["demo/demo.py", *inputs, "--classes", "brick, lava, wood", "--method", "naclip", "--refine", "pamr"]
    done = run(world, *command, "--output", tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    done = run(world, *command, "--output", tmp_path / "voted", "--regions", regions)
    assert done.returncode == 0, done.stderr

    plain, voted = read_labels(tmp_path / "plain"), read_labels(tmp_path / "voted")
    quarters = [(slice(0, 24), slice(0, 24)), (slice(0, 24), slice(24, 48)), (slice(24, 48), slice(0, 24))]
    half = slice(0, 47), slice(0, 24)
    for name, place in [*(("a_labels.png", quarter) for quarter in quarters), ("b_labels.png", half)]:
        assert (voted[name][place] == np.bincount(plain[name][place].flatten()).argmax()).all()
    rest = slice(24, 48), slice(24, 48)  # of no region
    assert np.array_equal(voted["a_labels.png"][rest], plain["a_labels.png"][rest])


@pytest.mark.fault("--regions: no folder, no file for an image, one of another size, or a video", "one error names it")
def test_unusable_regions_are_named(world, tmp_path, photos, regions):
    output = ["--output", tmp_path / "out"]
    check_error(run(world, *COMMAND, photos, *output, "--regions", "nowhere"), "no folder of regions 'nowhere'")
    done = run(world, *COMMAND, photos, *output, "--regions", regions)
    check_error(done, "2 images have no region file", "broken.jpg", "c.png")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(regions / "a.png")
    done = run(world, *COMMAND, photos / "a.png", *output, "--regions", regions)
    check_error(done, "1 region files cannot be used", "a.png' cannot be used", "9 x 8", "48 x 48")
    assert not (tmp_path / "out").exists()  # before anything was begun
    done = run(world, *COMMAND, "--video-input", tmp_path / "a.mp4", *output, "--regions", regions)
    check_error(done, "--regions", "not of the frames of a video")


# ------------------------------------------------------------------------------------ boxes


def test_boxes_are_written_beside_the_pictures(world, tmp_path):
    """By names that are no other picture's, of a dataset's words; the settings say what counts as an object."""
    pytest.importorskip("cv2")
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for index, name in enumerate(("a.png", "a_boxes.png")):
        Image.fromarray(draw_scene(7, index, size=96).image).save(folder / name)
    command = ["demo/demo.py", "--refine", "none", "--classes", "shapes_instances_val", "--boxes", folder]
    done = run(world, *command, "--output", output)
    assert done.returncode == 0, done.stderr

    settings = json.loads((output / SETTINGS).read_text())
    assert settings["--boxes"] == {"min_area": 30, "connectivity": 8, "max_objects": 100}
    for name in ("a.png", "a_boxes.png"):
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
