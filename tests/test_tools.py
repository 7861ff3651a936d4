"""The demo and the tools that look into data and evaluations, as a user runs them."""

import json

import numpy as np
import pytest
from PIL import Image

from tcl_d2.data.shapes import draw_scene
from tests.conftest import ROOT
from tests.running import check_error, run


def test_demo_goes_past_a_broken_file(world, tmp_path):
    """A folder, a list on the standard input, a broken file, from another folder: all results, the broken one named."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    for path in (folder / "a.png", folder / "more/a.png"):
        Image.fromarray(draw_scene(7, 1).image).save(path)
    (folder / "broken.jpg").write_bytes(b"no image")
    options = ["--output", "out", "--classes", "brick, lava", "--background", "--heat-maps", "--refine", "off"]
    demo = ROOT / "demo/demo.py"
    done = run(world, demo, "--input", "-", folder, *options, folder=tmp_path, stdin=str(folder / "a.png"))
    assert done.returncode == 1 and "broken.jpg" in done.stderr and "3 of 4 images segmented" in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_1.png", "a_2.json", "a_3_labels.png", "a_1_1_brick.png"} <= names
    assert set(json.loads((tmp_path / "out/a_1.json").read_text())["areas"]) == {"background", "brick", "lava"}


def test_demo_on_a_video(world, tmp_path):
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48))
    for index in range(3):
        writer.write(np.ascontiguousarray(draw_scene(7, index, size=64).image[:48, :, ::-1]))
    writer.release()
    options = ["--output", tmp_path, "--classes", "shapes_val", "--opts", "TEST.ZERO_SHOT.PAMR.ENABLED", "False"]
    done = run(world, "demo/demo.py", "--video-input", tmp_path / "v.mp4", *options[:1], tmp_path / "out", *options[2:])
    assert done.returncode == 0, done.stderr
    capture = cv2.VideoCapture(str(tmp_path / "out/v.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--classes", "brick", "--config-file", "configs/none.yaml"], "configs/none.yaml"),
        (["--classes", "brick, brick"], "twice: brick"),
        (["--classes", "brick", "--opts", "MODEL.WEIGHTS", "/none.pth"], "/none.pth"),
    ],
)
def test_demo_names_what_is_wrong(world, arguments, part):
    check_error(run(world, "demo/demo.py", "--input", "x.png", *arguments), part)


def test_data_is_drawn(world, tmp_path):
    for name, width in (("shapes_train", 640), ("shapes_val", 480)):
        path = tmp_path / f"{name}.png"
        options = ["--config-file", "configs/shapes/tcl.yaml", "--count", 3, "--output", path]
        done = run(world, "tools/visualize_data.py", name, *options)
        assert done.returncode == 0, done.stderr
        assert Image.open(path).width == width
    check_error(run(world, "tools/visualize_data.py", "no_such_set"), "no_such_set", "not registered")


def test_analysis(world, tmp_path):
    """Figures of the saved predictions equal the evaluation's; so does the sweep, at the config's setting."""
    few = ["TEST.ZERO_SHOT.MAX_IMAGES", 4, "DATASETS.TEST", '("shapes_val",)']
    options = ["--config-file", "configs/shapes/trained.yaml", "--eval-only", *few, "OUTPUT_DIR", tmp_path]
    done = run(world, "train_net.py", *options, "TEST.ZERO_SHOT.SAVE_PREDICTIONS", True)
    assert done.returncode == 0, done.stderr
    (expected,) = json.loads((tmp_path / "results.json").read_text())["data sets"]
    folder, out = tmp_path / "inference/shapes_val/predictions", tmp_path / "analysis"
    common = ["--output", out, "--count", 4]
    for command in (["predictions", "shapes_val", folder], ["settings", "shapes_val"]):
        done = run(world, "tools/analyze.py", *command, *common)
        assert done.returncode == 0, done.stderr
    assert json.loads((out / "predictions.json").read_text())["mIoU"] == pytest.approx(expected["mIoU"])
    sweep = json.loads((out / "settings.json").read_text())
    at = sweep["mIoU"][sweep["shares"].index(0.3)][np.argmin(np.abs(np.array(sweep["background scores"]) - 0.4))]
    assert at == pytest.approx(expected["mIoU"], abs=0.02)
    assert {"iou.png", "best_and_worst.png", "settings.png"} <= {path.name for path in out.iterdir()}


def test_wording(world, tmp_path):
    common = ["--output", tmp_path, "--count", 6]
    done = run(world, "tools/analyze.py", "wording", "shapes_stuff_val", "--words", "grass, green grass, lawn", *common)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "wording.json").read_text())) == ["grass", "green grass", "lawn"]
    done = run(world, "tools/analyze.py", "wording", "shapes_stuff_val", "--words", "unicorn, horse", *common)
    check_error(done, "'unicorn', the first of the words, must be a class")
