"""Installed from a wheel, away from the clone: commands, configs and the small model work from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from subprocess import PIPE

import pytest
import torch
from PIL import Image

from tcl_d2 import __version__
from tcl_d2.assets import list_configs
from tcl_d2.data.shapes import draw_scene
from tests.conftest import ROOT, draw_world
from tests.test_docs import blocks

SOURCES = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
BUILD = "from setuptools import build_meta as b; print(b.build_{}({!r}))"
# Runs scripts, each in a process that has imported the other packages alone
SERVER = """
import json, os, runpy, sys
import detectron2.engine, open_clip, timm

for line in sys.stdin:
    command, folder, output = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdin = open(os.devnull)
        sys.argv, sys.path[0] = command, os.path.dirname(command[0])
        runpy.run_path(command[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def python(*arguments: object, folder) -> None:
    """Run Python in a folder, with nothing in PYTHONPATH."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def environment(path="") -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from what is in the source distribution."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in ("configs", "tcl_d2"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    python("-c", BUILD.format("sdist", str(built)), folder=source)

    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(built, filter="data")
    unpacked = built / archive.name.removesuffix(".tar.gz")
    assert {path.name for path in unpacked.iterdir()} >= {*SOURCES, "configs", "tcl_d2"}
    python("-c", BUILD.format("wheel", str(built)), folder=unpacked)
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder in which nothing but the wheel is installed, and into which nothing can be written."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--target", folder, "--disable-pip-version-check"]
    python("-m", "pip", "install", *options, wheel, folder=folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs a script in a folder, with what is installed alone in PYTHONPATH; returns what it prints."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    with subprocess.Popen(
        command, cwd=folder, env=environment(installed), stdin=PIPE, stdout=PIPE, text=True
    ) as server:

        def run_script(*script: object, folder) -> str:
            output = tmp_path_factory.mktemp("output") / "output.txt"
            print(json.dumps([[*map(str, script)], str(folder), str(output)]), file=server.stdin, flush=True)
            assert server.stdout.readline() == "0\n", output.read_text()[-4000:]
            return output.read_text()

        yield run_script


@pytest.fixture
def empty(tmp_path):
    """A folder with nothing but a photo, and one where the small world's would lie."""
    image = Image.fromarray(draw_scene(7, 0).image)
    image.save(tmp_path / "photo.jpg")
    (tmp_path / "datasets/shapes/val/images").mkdir(parents=True)
    image.save(tmp_path / "datasets/shapes/val/images/00000.png")
    return tmp_path


def files_of(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_wheel_has_all_that_the_package_has(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "tcl_d2").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    configs = {f"tcl_d2/assets/configs/{name}" for name in list_configs()}
    rest = {name for name in names - package - configs if ".dist-info/" not in name}
    assert package | configs <= names and not rest and "tcl_d2/py.typed" in names


def test_metadata_is_complete(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"tcl_d2-{__version__}.dist-info"
    metadata, points = (archive.read(f"{info}/{name}").decode() for name in ("METADATA", "entry_points.txt"))
    for line in ("Author: tcl_d2 developers", "License: Apache-2.0", "Description-Content-Type: text/markdown"):
        assert f"\n{line}\n" in metadata
    assert metadata.count("\nClassifier: ") > 5 and "\n# tcl_d2: TCL" in metadata
    assert "tcl-d2 = tcl_d2.commands:main" in points and f"{info}/licenses/LICENSE" in archive.namelist()


def test_command_segments_a_photo(installed, run, empty):
    before = files_of(installed)
    run(next(installed.glob("bin/tcl-d2")), "segment", "photo.jpg", "--classes", "brick, grass", folder=empty)
    results = {"photo.png", "photo.json", "photo_labels.png", "result_settings.json"}
    assert results == {name for name in os.listdir(empty / "output/demo") if not name.startswith(".")}
    assert files_of(installed) == before


def test_snippets_of_the_readme_work(installed, run, empty):
    """And every config by its name; none of it comes from the clone."""
    code = ["import tcl_d2.model_zoo", "from tcl_d2.assets import list_configs", *blocks("README.md", "python")]
    code += ["for name in list_configs(): tcl_d2.model_zoo.get_config(name)"]
    code += ["print(tcl_d2.__file__, tcl_d2.model_zoo.get_config_file('tcl.yaml'), len(list_configs()))"]
    (empty / "readme.py").write_text("\n".join(code))
    package, config, count = run(empty / "readme.py", folder=empty).split()[-3:]
    assert package == f"{installed}/tcl_d2/__init__.py" and config.startswith(f"{installed}/tcl_d2/")
    assert int(count) == len(list_configs())


def test_snippets_for_other_projects_work(installed, run, tmp_path):
    """All of docs/reuse.md in one go, in a folder that has nothing but the small world."""
    before = files_of(installed)
    draw_world(tmp_path / "datasets", train=50, labeled=1, val=4)
    (tmp_path / "reuse.py").write_text("\n".join(blocks("docs/reuse.md", "python")))
    run(tmp_path / "reuse.py", folder=tmp_path)
    assert files_of(installed) == before

    # The plain DefaultTrainer resumed with the optimizer's state, and the second stage
    checkpoint = torch.load(tmp_path / "output/plain/model_final.pth", weights_only=False)
    state = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    assert checkpoint["iteration"] == 2 and {int(moments["step"]) for moments in state.values()} == {2, 3}


@pytest.mark.fault("tcl_d2 is imported where Detectron2 is not installed", "one error says two ways to get it")
def test_missing_detectron2_is_said(tmp_path):
    """Python without site-packages has neither Detectron2 nor torch."""
    command = [sys.executable, "-S", "-m", "tcl_d2", "segment"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    error = done.stderr[done.stderr.index("tcl_d2 needs Detectron2") :]
    official = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
    assert done.returncode == 1 and "During handling" not in done.stderr
    for way in (official, "python tools/setup_env.py --python "):
        assert way in error and way in (ROOT / "README.md").read_text()
