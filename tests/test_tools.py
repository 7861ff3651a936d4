"""The demo and the tools that look into data and evaluations, as a user runs them."""

import importlib
import io
import json
import os
import socket
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.commands.inputs import find_inputs
from tcl_d2.commands.result_folder import SETTINGS
from tcl_d2.data import BenchmarkMapper, register_benchmark_folder
from tcl_d2.data.shapes import GROUNDS, OBJECTS, draw_scene
from tcl_d2.engine import Trainer
from tcl_d2.predictor import TCLPredictor
from tcl_d2.utils.files import unfinished_path
from tcl_d2.words.parsing import split_words
from tests.conftest import ROOT
from tests.running import check_error, run


def test_demo_goes_past_a_broken_file(world, tmp_path):
    """A folder, a list on the standard input, a broken file, from another folder: all results, the broken one named."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    for path in (folder / "a.png", folder / "more/a.png"):
        Image.fromarray(draw_scene(7, 1).image).save(path)
    (folder / "broken.jpg").write_bytes(b"no image")
    options = ["--output", "out", "--classes", "brick, lava", "--background", "--heat-maps", "--refine", "none"]
    demo = ROOT / "demo/demo.py"
    done = run(world, demo, "--input", "-", folder, *options, folder=tmp_path, stdin=str(folder / "a.png"))
    assert done.returncode == 1 and "broken.jpg" in done.stderr and "2 of 3 images segmented" in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a.png", "a.json", "a_labels.png", "a_1_brick.png", "more"} <= names
    assert set(json.loads((tmp_path / "out/more/a.json").read_text())["areas"]) == {"background", "brick", "lava"}


DEMO = ("demo/demo.py", "--refine", "none", "--classes", "brick, lava")


def draw_scenes(folder, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(draw_scene(7, 1, size=24).image).save(folder / name)


@pytest.mark.fault("demo: pictures whose results would have the same names", "every result has a name of its own")
def test_demo_gives_each_result_a_name(world, tmp_path):
    inputs = ("a.png", "a.jpg", "a_1.png", "b.png", "b_labels.png", "b_0_brick.png", "B.jpg")
    draw_scenes(tmp_path / "in", *inputs)
    done = run(world, *DEMO, "--input", tmp_path / "in", "--output", tmp_path / "out", "--heat-maps")
    assert done.returncode == 0, done.stderr
    names = {path.name.lower() for path in (tmp_path / "out").glob("[!.]*")}
    assert len(names) == 5 * len(inputs) + 1  # overlay, labels, areas, and a heat map for each of two words; settings
    assert {"a_1.png", "b.png.png"} <= names and done.stdout.count(" -> ") == len(inputs)


@pytest.mark.fault("demo: an output folder that holds an input", "an error at the start; the input stays as it was")
def test_demo_replaces_no_input(world, tmp_path):
    draw_scenes(tmp_path / "photos", "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    content = (tmp_path / "photos/a.png").read_bytes()
    for source, output in (("photos", "photos"), ("photos/a.png", "link"), ("link/*.png", "photos/../photos")):
        done = run(world, ROOT / DEMO[0], *DEMO[1:], "--input", source, "--output", output, folder=tmp_path)
        check_error(done, "a.png lies in --output", "give another folder")
    done = run(world, *DEMO, "--video-input", tmp_path / "photos/a.mp4", "--output", tmp_path / "photos")
    check_error(done, "a.mp4 lies in --output")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]
    assert (tmp_path / "photos/a.png").read_bytes() == content


@pytest.mark.fault("demo: ._* and __MACOSX in a folder of pictures, a glob or a list", "not taken for pictures")
def test_demo_skips_leftovers_of_other_systems(tmp_path, monkeypatch):
    draw_scenes(tmp_path, "a.png")
    draw_scenes(tmp_path / "__MACOSX", "._a.png", "a.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    for entry in (str(tmp_path), f"{tmp_path}/**/*.png", f"{tmp_path}/._*.png", "-"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path}/._a.png\n{tmp_path}/a.png\n"))
        if "._" in entry:
            with pytest.raises(FileNotFoundError, match="no images in"):
                find_inputs([entry], tmp_path / "out")
        else:
            assert find_inputs([entry], tmp_path / "out") == {tmp_path / "a.png": "a.png"}


@pytest.mark.fault("demo: results of a killed run below the folder of pictures", "not taken for pictures")
def test_demo_leaves_its_results_below_the_input_alone(world, tmp_path):
    draw_scenes(tmp_path, "a.png")
    (tmp_path / "out").mkdir()
    unfinished_path(tmp_path / "out/a.png", pid=2**22 + 1).touch()  # no process has this number
    for _ in range(2):
        done = run(world, *DEMO, "--input", tmp_path, "--output", tmp_path / "out")
        assert done.returncode == 0 and "1 of 1 images" in done.stdout
    names = ["a.json", "a.png", "a_labels.png", SETTINGS]
    assert sorted(path.name for path in (tmp_path / "out").glob("*") if ".lock" not in path.name) == names


@pytest.mark.fault("demo: results of a run with another --output below the folder of pictures", "left out, and named")
def test_demo_leaves_results_of_other_runs_alone(world, tmp_path):
    draw_scenes(tmp_path, "a.png")
    for name in ("first", "second"):
        done = run(world, *DEMO, "--input", tmp_path, "--output", tmp_path / name)
        assert done.returncode == 0 and "1 of 1 images" in done.stdout, done.stderr
    assert f"left out: {tmp_path / 'first'}, which has results" in done.stderr

    # Also what lies in folders below them
    (tmp_path / "more").mkdir()
    (tmp_path / "first/more").mkdir()
    draw_scenes(tmp_path / "first/more", "b.png")
    assert find_inputs([str(tmp_path)], tmp_path / "second") == {tmp_path / "a.png": "a.png"}
    (tmp_path / "first/more/b.png").unlink()

    # A folder of results that is named itself is what the user wants
    done = run(world, *DEMO, "--input", tmp_path / "first", "--output", tmp_path / "third")
    assert "2 of 2 images" in done.stdout, done.stderr


@pytest.mark.fault("demo: extreme pictures, an empty file, a long and a strange name", "the folder goes on")
def test_demo_goes_on_with_odd_files(world, tmp_path):
    draw_scenes(tmp_path, "x" * 240 + ".png", "a[1].png", "caf\udce9.png")
    for width, height in ((4000, 3), (2, 3000)):
        Image.new("RGB", (width, height)).save(tmp_path / f"{width}.png")
    (tmp_path / "empty.png").touch()
    options = ["--input", "-", tmp_path, "--output", tmp_path / "out"]
    done = run(world, *DEMO, *options, stdin=str(tmp_path / "a[1].png"))
    assert done.returncode == 1 and "5 of 6 images segmented" in done.stdout, done.stderr
    assert done.stderr.count("left out") == 1 and "empty.png" in done.stderr


@pytest.mark.fault(
    "demo: a folder with links to themselves or to nothing, named pipes and sockets", "each is named; the rest is done"
)
def test_demo_goes_past_what_is_no_file(world, tmp_path):
    draw_scenes(tmp_path / "in/more", "a.png")
    os.mkfifo(tmp_path / "in/pipe.png")
    for name, target in (("loop.png", "loop.png"), ("gone.png", "none"), ("loop", "."), ("zero.png", "/dev/zero")):
        (tmp_path / "in" / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "in/socket.png"))
        done = run(world, *DEMO, tmp_path / "in", tmp_path / "in/**/*.png", "--output", tmp_path / "out")
    assert done.returncode == 1 and "1 of 6 images segmented" in done.stdout, done.stderr
    assert done.stderr.count("left out") == 5
    for name in ("pipe.png", "loop.png", "gone.png", "zero.png", "socket.png"):
        assert done.stderr.count(str(tmp_path / "in" / name)) >= 1

    done = run(world, *DEMO, tmp_path / "in/pipe.png", "--output", tmp_path / "out")
    assert done.returncode == 1 and "pipe.png" in done.stderr and "named pipe" in done.stderr


@pytest.mark.fault("demo: hundreds of words in place of a file's name", "they are taken as words")
def test_demo_bears_many_words(world, tmp_path):
    draw_scenes(tmp_path, "a.png")
    words = [f"a thing of the number {i} {'x' * 100}" for i in range(60)]
    options = ["--input", tmp_path / "a.png", "--output", tmp_path / "out", "--heat-maps"]
    done = run(world, *DEMO[:-1], ", ".join(words), *options)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("[!.]*"))) == 4 + len(words)


@pytest.mark.fault("demo: a video whose name is not UTF-8", "read and written as any other")
def test_demo_writes_a_video_of_a_video(world, tmp_path):
    """OpenCV ends the process for a name that has no UTF-8, if it is given as text."""
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48))
    for index in range(3):
        writer.write(np.ascontiguousarray(draw_scene(7, index, size=64).image[:48, :, ::-1]))
    writer.release()
    name = "v\udce4.mp4" if int(cv2.__version__.split(".")[0]) >= 5 else "vä.mp4"  # older ones take text alone
    video = (tmp_path / "v.mp4").rename(tmp_path / name)
    options = ["--output", tmp_path, "--classes", "shapes_val", "--opts", "TEST.ZERO_SHOT.REFINE", "none"]
    done = run(world, "demo/demo.py", "--video-input", video, *options[:1], tmp_path / "out", *options[2:])
    assert done.returncode == 0, done.stderr
    capture = cv2.VideoCapture(str((tmp_path / "out" / name).rename(tmp_path / "out/v.mp4")))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--classes", "brick", "--config-file", "configs/none.yaml"], "configs/none.yaml"),
        (["--classes", "brick, brick"], "twice: brick"),
        (["--classes", "brick", "--opts", "MODEL.WEIGHTS", "/none.pth"], "/none.pth"),
        (["--classes", "background, brick", "--background"], "'background' is one of the class words"),
        (["--classes", "my_words.txt"], "no file 'my_words.txt'"),
        (["--classes", "brick, lists/words"], "no file 'lists/words'"),
        (["--classes", "shapes_train"], "the dataset 'shapes_train' has no class words"),
        (["--classes", "brick", "--output", "README.md"], "--output 'README.md' is no folder"),
        (["--classes", "brick", "--input", "docs/*.none"], "no images in docs/*.none"),
        (["--classes", "brick", "--input", "docs", "tests/golden"], "no images in tests/golden"),
        (["--classes", "brick", "--input", "-"], "no names of files on the standard input"),
    ],
)
def test_demo_names_what_is_wrong(world, arguments, part):
    inputs = [] if "--input" in arguments else ["--input", "x.png"]
    done = run(world, "demo/demo.py", *inputs, *arguments)
    check_error(done, part)
    assert done.returncode == 1


@pytest.mark.fault("demo: words in a file with a byte-order mark, or in Latin-1", "read; an error names it")
def test_demo_reads_words_of_files(world, tmp_path):
    draw_scenes(tmp_path, "a.png")
    for encoding, name in (("utf-8-sig", "mark.txt"), ("latin-1", "latin.txt")):
        (tmp_path / name).write_text("brick\nläva\n", encoding=encoding)
    options = ["--input", tmp_path / "a.png", "--output", tmp_path / "out"]
    done = run(world, *DEMO[:-1], tmp_path / "mark.txt", *options)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "out/a.json").read_text())["areas"]) == {"brick", "läva"}
    check_error(run(world, *DEMO[:-1], tmp_path / "latin.txt", *options), "latin.txt is not UTF-8")


def test_samples_of_a_dataset_are_drawn(world, tmp_path):
    for name, width in (("shapes_train", 640), ("shapes_val", 480), ("shapes_instances_val", 480)):
        path = tmp_path / f"{name}.png"
        options = ["--config-file", "configs/shapes/tcl.yaml", "--count", 3, "--output", path]
        done = run(world, "tools/visualize_data.py", name, *options)
        assert done.returncode == 0, done.stderr
        assert Image.open(path).width == width
    check_error(run(world, "tools/visualize_data.py", "no_such_set"), "no_such_set", "not registered")
    check_error(run(world, "tools/visualize_data.py", "shapes_panoptic_val"), "no labels of pixels")


def test_demo_of_the_small_world_compares_methods_without_training(in_world, tmp_path, monkeypatch):
    """Its table has their figures, those of their configurations, after the four rows of dense CLIP and TCL."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    shapes_demo = importlib.import_module("shapes_demo")
    names = [name for name, _, _ in shapes_demo.METHODS]
    assert names[:4] == ["dense CLIP", "dense CLIP + PAMR", "TCL", "TCL + PAMR"]
    assert names[4:] == ["clip", "maskclip", "sclip", "clearclip", "naclip", "ReCo"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes_demo, "METHODS", shapes_demo.METHODS[6:9])
    results = shapes_demo.evaluate(tmp_path / "none.pth", tmp_path / "index")
    assert list(results) == names[6:9] and len({row["shapes_stuff_val"] for row in results.values()}) == 3

    options = ["MODEL.DENSE_CLIP.HEAD", "sclip", "OUTPUT_DIR", tmp_path]
    cfg = load_config("shapes/dense_clip.yaml", options)
    expected = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    assert results["sclip"]["shapes_val"] == expected["shapes_val"]["sem_seg"]["mIoU"]


def test_analysis_has_the_figures_of_the_evaluation(world, tmp_path):
    """Of the saved predictions, and of the sweep at the settings of the config."""
    few = ["TEST.ZERO_SHOT.MAX_IMAGES", 4, "DATASETS.TEST", '("shapes_val",)']
    options = ["--config-file", "configs/shapes/trained.yaml", "--eval-only", *few, "OUTPUT_DIR", tmp_path]
    done = run(world, "train_net.py", *options, "TEST.ZERO_SHOT.SAVE_PREDICTIONS", True)
    assert done.returncode == 0, done.stderr

    (expected,) = json.loads((tmp_path / "results.json").read_text())["datasets"]
    folder, out = tmp_path / "inference/shapes_val/predictions", tmp_path / "analysis"
    common = ["--output", out, "--count", 4]
    for command in (["predictions", "shapes_val", folder], ["settings", "shapes_val"]):
        done = run(world, "tools/analyze.py", *command, *common)
        assert done.returncode == 0, done.stderr

    assert json.loads((out / "predictions.json").read_text())["mIoU"] == pytest.approx(expected["mIoU"])

    sweep = json.loads((out / "settings.json").read_text())
    row = sweep["mIoU"][0][sweep["shares"].index(0.3)]
    column = np.abs(np.array(sweep["background scores"]) - 0.4).argmin()
    assert row[column] == pytest.approx(expected["mIoU"], abs=0.02)
    assert {"iou.png", "best_and_worst.png", "settings.png"} <= {path.name for path in out.iterdir()}


@pytest.mark.fault("analysis of predictions: an image that is ignored, a value of no class", "counts nowhere; named")
def test_analysis_goes_past_an_ignored_image(world, tmp_path):
    (tmp_path / "set/classes.txt").parent.mkdir()
    (tmp_path / "set/classes.txt").write_text("cat\ndog\n")
    for number, value in enumerate((0, 1, 255)):
        for folder, shade in (("images", 90), ("labels", value), ("predictions", min(value, 1))):
            (tmp_path / "set" / folder).mkdir(exist_ok=True)
            Image.new("L", (8, 6), shade).save(tmp_path / f"set/{folder}/{number}.png")
    command = ["tools/analyze.py", "predictions", tmp_path / "set", tmp_path / "set/predictions", "--output", tmp_path]
    done = run(world, *command)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "predictions.json").read_text())["mIoU"] == 100

    Image.new("L", (8, 6), 7).save(tmp_path / "set/predictions/1.png")
    check_error(run(world, *command), "predictions/1.png has the value 7")


@pytest.fixture
def analyze(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("analyze")


def test_analysis_of_settings_leaves_the_model_as_it_was(in_world, tmp_path, analyze):
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", "TEST.ZERO_SHOT.REFINE", "none")
    sweep = analyze.analyze_settings("shapes_val", predictor, tmp_path, 1, ["none", "pamr"])
    assert np.shape(sweep["mIoU"]) == (2, 8, 41) and sweep["refiners"] == ["none", "pamr"]
    assert predictor.model.kp_weight == 0.3 and predictor.model.refiner is None


@pytest.mark.parametrize("option", [(), ("AREA_THRESHOLD", 0.05), ("LOGIT_SCALE", 20.0)])
def test_analysis_of_settings_has_the_labels_of_each_alone(in_world, analyze, option):
    """Of scores that are kept, or, where labels depend on all of them, of the whole model."""
    options = [f"TEST.ZERO_SHOT.{option[0]}", option[1]] if option else []
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", *options)
    model, thresholds = predictor.model, (0.1, 0.4, 0.7)
    inputs = BenchmarkMapper(predictor.cfg)(DatasetCatalog.get("shapes_val")[0])
    model.set_dataset("shapes_val")
    counted = []
    with model.clip.results.keep():
        for model.refiner in analyze.build_refiners(predictor.cfg, ["none", "pamr"]).values():
            for model.kp_weight in (0.0, 0.3):
                labels = list(analyze.labels_by_threshold(model, inputs, thresholds))
                counted += [(model.refiner, model.kp_weight, *row) for row in zip(thresholds, labels)]
    assert len(counted) == 12 and model.clip.results.spared > 0
    for model.refiner, model.kp_weight, model.background_score, labels in counted:
        expected = model([{**inputs, "labels_only": True}])[0]["sem_seg_labels"]
        assert np.array_equal(labels, expected)


def test_analysis_of_settings_keeps_the_words_of_a_benchmark(in_world, tmp_path, analyze):
    """Of the background, and several words of a class: the figure is the evaluation's."""
    for part in ("images", "labels"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / part).symlink_to(in_world / "shapes/val" / part)
    names = [f"{name}, {name} thing" for name in (*OBJECTS, *GROUNDS)]
    (tmp_path / "set/classes.txt").write_text("\n".join(["background, sky, cloud", *names[1:]]))
    data = register_benchmark_folder(str(tmp_path / "set"))
    options = ["TEST.ZERO_SHOT.REFINE", "none", "TEST.ZERO_SHOT.MAX_IMAGES", 3, "DATALOADER.NUM_WORKERS", 0]
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", *options, "OUTPUT_DIR", tmp_path)
    sweep = analyze.analyze_settings(data, predictor, tmp_path, count=3)

    predictor.cfg.DATASETS.TEST = (data,)
    expected = Trainer.test(predictor.cfg, predictor.model)[data]["sem_seg"]["mIoU"]
    column = np.abs(np.array(sweep["background scores"]) - predictor.model.background_score).argmin()
    assert sweep["mIoU"][0][sweep["shares"].index(0.3)][column] == pytest.approx(expected, abs=0.02)


def test_analysis_of_wording_takes_several_words_together(in_world, tmp_path, analyze):
    """The class then has the best of their scores: its IoU is that of the labels that the predictor gives."""
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", "TEST.ZERO_SHOT.REFINE", "none")
    words = split_words("lava, soil, lava | soil")
    ious = analyze.analyze_wording("shapes_objects_val", predictor, tmp_path, 0, words)
    assert list(ious) == ["lava", "soil", "lava | soil"] and len(set(ious.values())) == 3

    counts = dict.fromkeys(ious, np.zeros(2))  # intersection and union, of the labeled pixels
    index = OBJECTS.index("lava")
    for dataset_dict, label in analyze.read_labels("shapes_objects_val", 0):
        is_class, is_labeled = label == index, label < len(OBJECTS)
        if not is_class.any():
            continue
        for text, entry in zip(ious, words):
            reworded = [*OBJECTS[:index], entry, *OBJECTS[index + 1 :]]
            mask = (predictor(dataset_dict["file_name"], reworded).labels == index) & is_labeled
            counts[text] = counts[text] + ((is_class & mask).sum(), (is_class | mask).sum())
    for text, (intersection, union) in counts.items():
        assert ious[text] == pytest.approx(100 * intersection / union)


def test_analysis_of_wording_keeps_the_words_of_a_benchmark(in_world, tmp_path, analyze):
    """Of the background and of the other classes; a class is named by its name, whatever its words are."""
    for part in ("images", "labels"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / part).symlink_to(in_world / "shapes/val" / part)
    names = [*OBJECTS, *GROUNDS]
    lines = ["background, sky, cloud", *names[1:]]
    lines[names.index("grass")] = "grass, lawn"
    (tmp_path / "set/classes.txt").write_text("\n".join(lines))
    data = register_benchmark_folder(str(tmp_path / "set"))

    seen = []
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", "TEST.ZERO_SHOT.REFINE", "none")
    predictor.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    ious = analyze.analyze_wording(data, predictor, tmp_path, 0, split_words("grass | lawn, grass"))
    assert list(ious) == ["grass | lawn", "grass"]
    assert seen and all(inputs["background"] == ["sky", "cloud"] for inputs in seen)
    assert [inputs["vocabulary"][names.index("grass") - 1] for inputs in seen[:2]] == [["grass", "lawn"], "grass"]
    with pytest.raises(ValueError, match="'background', the first of the words, must be a class"):
        analyze.analyze_wording(data, predictor, tmp_path, 0, ["background", "grass"])


def test_analysis_of_wording_starts_from_a_class(world, tmp_path):
    common = ["--output", tmp_path, "--count", 6]
    words = ["--words", "grass, green grass, grass | lawn"]
    done = run(world, "tools/analyze.py", "wording", "shapes_stuff_val", *words, *common)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "wording.json").read_text())) == ["grass", "green grass", "grass | lawn"]
    done = run(world, "tools/analyze.py", "wording", "shapes_stuff_val", "--words", "unicorn, horse", *common)
    check_error(done, "'unicorn', the first of the words, must be a class")
