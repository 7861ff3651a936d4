"""`tcl-d2` as a user types it: it finds its commands, says what it does not know, and runs code of the user's."""

import json
import subprocess

import pytest
from PIL import Image

from tcl_d2 import __version__
from tcl_d2.commands import COMMANDS, DATASETS, FIGURES, main
from tcl_d2.commands.model_options import method_names
from tcl_d2.data.shapes import draw_scene
from tcl_d2.predictor import TCLPredictor
from tests import running
from tests.conftest import ROOT
from tests.running import check_error

NAMES = [(name,) for name in COMMANDS if name not in ("prepare", "reproduce")]
NAMES += [("prepare", dataset) for dataset in DATASETS] + [("reproduce", "tcl")]
FEW = ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 1, "SOLVER.WARMUP_ITERS", 0]
FEW += ["TEST.ZERO_SHOT.MAX_IMAGES", 2, "TEST.ZERO_SHOT.REFINE", "none", "OUTPUT_DIR", "out"]
MY_DATA = """
from tcl_d2.data import register_benchmark_folder
from tcl_d2.data.dataset_files import datasets_root

register_benchmark_folder(str(datasets_root() / "shapes/val"), "my_val")
"""
MY_PAIRS = """
from tcl_d2.data import register_webdataset

register_webdataset("my_pairs", "shapes/train/*.tar")
"""
MY_HEAD = """
from tcl_d2.modeling import DENSE_HEAD_REGISTRY

@DENSE_HEAD_REGISTRY.register()
def my_head(cfg):
    return DENSE_HEAD_REGISTRY.get("sclip")(cfg)
"""
LAUNCHER = """
import my_data
from tcl_d2.commands.train import main
from tcl_d2.engine import argument_parser, launch

if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
"""


def run(folder, *words: object) -> subprocess.CompletedProcess:
    return running.run(folder, "-m", "tcl_d2", *words, folder=folder)


@pytest.fixture
def project(world, tmp_path):
    """A folder of a user: a file that registers datasets, and the data."""
    (tmp_path / "shapes").mkdir()
    for part in ("train", "val/images", "val/labels"):
        (tmp_path / "shapes" / part).parent.mkdir(exist_ok=True)
        (tmp_path / "shapes" / part).symlink_to(world / "shapes" / part)
    words = (ROOT / "tcl_d2/assets/classes/voc.json").read_text()
    words = list(json.loads(words)) + [f"thing {number}" for number in range(20)]
    (tmp_path / "shapes/val/classes.txt").write_text("\n".join(words))
    (tmp_path / "my_data.py").write_text(MY_DATA)
    return tmp_path


def evaluated(output) -> list[str]:
    """Return the names of the benchmarks whose results are in an OUTPUT_DIR."""
    return [row["dataset"] for row in json.loads((output / "results.json").read_text())["datasets"]]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_every_command_has_help(tmp_path, names):
    done = run(tmp_path, *names, "--help")
    assert "Warning" not in done.stderr  # a user can do nothing about those of libraries
    assert done.returncode == 0 and done.stdout.startswith(f"usage: tcl-d2 {' '.join(names)} "), done.stderr


def test_commands_are_listed(tmp_path):
    for words, names in ((["--help"], COMMANDS), ([], COMMANDS), (["prepare"], DATASETS), (["reproduce"], FIGURES)):
        done = run(tmp_path, *words)
        assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in names)
    assert run(tmp_path, "--version").stdout == f"tcl_d2 {__version__}\n"


@pytest.mark.fault("tcl-d2 with a command that does not exist", "one error names the nearest, or all")
@pytest.mark.parametrize(
    "words, parts",
    [
        (["segmnet", "photo.png"], ["tcl-d2 has no 'segmnet'", "'segment'"]),
        (
            ["xyz"],
            ["tcl-d2 has no 'xyz'", "app, train, evaluate, reproduce, compare, analyze-model, convert, export"],
        ),
        (["prepare", "ade20"], ["tcl-d2 prepare has no 'ade20'", "'ade20k'"]),
    ],
)
def test_unknown_commands_are_named(tmp_path, words, parts):
    check_error(run(tmp_path, *words), *parts)


def test_pictures_are_segmented_from_any_folder(tmp_path):
    """With the model that comes with the project, and files before and after the options."""
    for name in ("a.png", "b.png"):
        Image.fromarray(draw_scene(7, 1).image).save(tmp_path / name)
    done = run(tmp_path, "segment", "a.png", "b.png", "--classes", "brick, grass", "--output", "first")
    assert done.returncode == 0 and "2 of 2 images segmented" in done.stdout, done.stderr
    done = run(tmp_path, "segment", "--classes", "brick, grass", "--output", "second", "a.png")
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / folder / "a.json").read_text() for folder in ("first", "second"))
    assert first == second and set(json.loads(first)["areas"]) == {"brick", "grass"}


@pytest.mark.parametrize("name", ["shapes", "shapes/trained.yaml"])
def test_a_model_is_named(tmp_path, name):
    Image.fromarray(draw_scene(7, 1).image).save(tmp_path / "a.png")
    done = run(tmp_path, "segment", "a.png", "--classes", "brick, grass", "--model", name)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(draw_scene(7, 5, size=96).image).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def areas(picture, *options: object) -> dict[str, float]:
    """Return the areas of the classes that `tcl-d2 segment a.png OPTIONS` writes."""
    done = run(picture.parent, "segment", picture.name, *options)
    assert done.returncode == 0, done.stderr
    return json.loads((picture.parent / "output/demo/a.json").read_text())["areas"]


def test_background_of_words(picture):
    """On the command line, in a file of words, and of a benchmark: the areas are those of the predictor."""
    predictor = TCLPredictor("shapes/trained.yaml")
    classes, words = ["brick", ["wood", "marble"], "lava"], ["soil", "sand"]
    plain, expected = (predictor(picture, classes, background).areas() for background in (True, words))
    assert plain != pytest.approx(expected, abs=1e-5)

    # On the command line
    text = ["--classes", "brick, wood | marble, lava"]
    assert areas(picture, *text, "--background") == pytest.approx(plain, abs=1e-5)
    assert areas(picture, *text, "--background", "soil, sand") == pytest.approx(expected, abs=1e-5)

    # In a file, under words of the command line or alone
    file = picture.parent / "words.txt"
    file.write_text("background, soil, sand\nbrick\nwood, marble\nlava\n")
    assert areas(picture, "--classes", file.name) == pytest.approx(expected, abs=1e-5)
    file.write_text("background\nbrick\nwood, marble\nlava\n")
    assert areas(picture, "--classes", file.name) == pytest.approx(plain, abs=1e-5)
    assert areas(picture, "--classes", file.name, "--background=soil | sand") == pytest.approx(expected, abs=1e-5)

    # Of a benchmark
    (picture.parent / "set").mkdir()
    (picture.parent / "set/classes.txt").write_text("background, soil, sand\nbrick\nwood, marble\nlava\n")
    code = "from tcl_d2.data import register_benchmark_folder as register\nregister('set', 'my_set')"
    (picture.parent / "my_set.py").write_text(code)
    options = ["--classes", "my_set", "--import", "my_set.py", "--background"]
    assert areas(picture, *options) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("words", "hint"), [(["TEST.ZERO_SHOT.REFINE", "none"], True), (["--refin", "none"], False)])
def test_config_keys_without_opts_are_told_where_they_go(capsys, words, hint):
    with pytest.raises(SystemExit, match="2"):
        main(["app", *words])
    error = capsys.readouterr().err
    assert f"unrecognized arguments: {' '.join(words)}" in error and ("--opts" in error.splitlines()[-1]) == hint


@pytest.mark.fault("the mistyped name of a benchmark in place of class words", "an error names the nearest")
def test_a_mistyped_benchmark_is_no_class_word(picture):
    done = run(picture.parent, "segment", picture.name, "--classes", "shapes_vall")
    check_error(done, "no benchmark 'shapes_vall'", "'shapes_val'")
    assert set(areas(picture, "--classes", "fire_truck")) == {"fire_truck"}


@pytest.mark.fault("an input after --background, where words may stand; no words there", "an error says what to do")
@pytest.mark.parametrize("text", ["a.png", "b.JPG", "photos/b", "*.png", "-", "folder"])
def test_inputs_are_no_words_of_the_background(picture, text):
    (picture.parent / "folder").mkdir()
    done = run(picture.parent, "segment", "--classes", "brick", "--background", text, "a.png")
    assert done.returncode == 2 and f"--background: '{text}' looks like an input" in done.stderr


@pytest.mark.fault("--background without a word in its words", "an error says what to do")
@pytest.mark.parametrize("text", ["", " , | "])
def test_a_background_of_no_words_is_refused(picture, text):
    done = run(picture.parent, "segment", "a.png", "--classes", "brick", "--background", text)
    assert done.returncode == 2 and "--background: no words" in done.stderr


def test_a_method_is_chosen(picture):
    """The CLIP of any model by a dense head, also one of the user's."""
    words = "wood, lava, soil, sand, snow, grass"
    configs = {head: ["shapes/dense_clip.yaml", "MODEL.DENSE_CLIP.HEAD", head] for head in ("sclip", "naclip")}
    configs["tcl"] = ["shapes/trained.yaml"]
    expected = {method: TCLPredictor(*config)(picture, words).areas() for method, config in configs.items()}
    for method, values in expected.items():
        assert areas(picture, "--classes", words, "--method", method) == pytest.approx(values, abs=1e-5)
    assert expected["sclip"] != expected["naclip"] != expected["tcl"]

    (picture.parent / "my_head.py").write_text(MY_HEAD)
    mine = areas(picture, "--classes", words, "--method", "my_head", "--import", "my_head.py")
    assert mine == pytest.approx(expected["sclip"], abs=1e-5)


@pytest.mark.fault("a method that there is not", "an error lists those that there are, before a model is built")
def test_unknown_methods_are_named(picture):
    done = run(picture.parent, "segment", "a.png", "--classes", "brick", "--method", "nclip", "--model", "none.yaml")
    check_error(done, "--method is nclip", f"expected one of {', '.join(method_names())}")


def test_inputs_are_needed(tmp_path):
    done = run(tmp_path, "segment", "--classes", "brick")
    assert done.returncode == 2 and "one of the arguments INPUT --input" in done.stderr


def test_a_world_is_drawn_and_checked(tmp_path):
    done = run(tmp_path, "prepare", "shapes", "--train", 3, "--labeled", 1, "--val", 1, "--processes", 1)
    assert done.returncode == 0 and (tmp_path / "shapes/world.json").exists(), done.stderr
    check_error(run(tmp_path, "prepare", "shapes", "--val", 0), "--val and --processes are at least 1")


@pytest.mark.parametrize("flag", [["--import", "my_data"], ["--import", "my_data.py"], []])
def test_code_of_the_user_registers_datasets(project, flag):
    """By the command line, where OUTPUT_DIR/config.yaml then has it; without it the name is unknown."""
    options = ["--config-file", "shapes/trained.yaml", *flag, *FEW, "DATASETS.TEST", "('my_val',)"]
    done = run(project, "evaluate", *options)
    if not flag:
        return check_error(done, "'my_val' is not registered")
    assert done.returncode == 0 and evaluated(project / "out") == ["my_val"], done.stderr
    again = run(project, "evaluate", "--config-file", "out/config.yaml", "OUTPUT_DIR", "again")
    assert again.returncode == 0 and evaluated(project / "again") == ["my_val"], again.stderr


def test_code_of_the_user_is_imported_in_every_process(project):
    """By --import, and by the launcher of docs/extend.md; with --import alone, the pairs would be unknown."""
    (project / "my_pairs.py").write_text(MY_PAIRS)
    (project / "my_train.py").write_text(LAUNCHER.replace("my_data", "my_pairs"))
    assert LAUNCHER.strip() in (ROOT / "docs/extend.md").read_text()
    options = ["--config-file", "shapes/tcl.yaml", "--num-processes", 2, "--import", "my_data.py", *FEW]
    names = ["DATASETS.TRAIN", "('my_pairs',)", "DATASETS.TEST", "('my_val',)"]
    done = running.run(project, "my_train.py", *options, *names, folder=project, spawn=True)
    assert done.returncode == 0 and evaluated(project / "out") == ["my_val"], done.stderr
    assert (project / "out/model_final.pth").exists() and (project / "out/log.txt.rank1").exists()


def test_classes_of_a_registered_benchmark_are_words(project):
    """--import comes before the words are read, and so does IMPORTS of a config."""
    Image.fromarray(draw_scene(7, 1).image).save(project / "a.png")
    words = ["segment", "a.png", "--classes", "my_val", "--refine", "none"]
    for options in (["--import", "my_data.py"], ["--opts", "IMPORTS", "['my_data']"]):
        done = run(project, *words, *options)
        assert done.returncode == 0, done.stderr
        assert "aeroplane" in json.loads((project / "output/demo/a.json").read_text())["areas"]
