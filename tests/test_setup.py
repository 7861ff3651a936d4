"""Setup: it ends early with one clear message, and the dependency list is what the code imports."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import setup_env  # noqa: E402

# An interpreter that notes each command, answers questions about its environment, and installs nothing.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> {folder}/commands
case "$*" in
  *version_info*) echo {version} ;;
  *distributions*) echo '{environment}' ;;
  *"pip install"*) {pip} ;;
  *) echo 0.6 detectron2/__init__.py ;;
esac
"""


def run_setup(
    folder: Path, version: str = "3.11", detectron2: bool = True, torch: str = "2.6.0", pip: str = "true"
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Set up an environment of a fake interpreter in a folder; return the outcome and pip's commands so far."""
    python = write_python(folder / "python", folder, version, detectron2, torch, pip)
    command = [sys.executable, "tools/setup_env.py", "--python", str(python)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done, installs_so_far(folder)


def write_python(path: Path, folder: Path, version="3.11", detectron2=True, torch="2.6.0", pip="true") -> Path:
    environment = {"prefix": str(folder), "packages": f"{folder}/packages", "torch": [f"torch=={torch}"]}
    values = {"folder": folder, "version": version, "pip": pip}
    values["environment"] = json.dumps({**environment, "detectron2": detectron2})
    path.write_text(FAKE_PYTHON.format(**values))
    path.chmod(0o755)
    return path


def installs_so_far(folder: Path) -> list[str]:
    commands = (folder / "commands").read_text().splitlines()
    return [line for line in commands if line.startswith("-m pip install")]


@pytest.mark.fault("setup with Python 3.8", "one message says which version is needed")
def test_old_python_is_refused(tmp_path):
    done, installs = run_setup(tmp_path, version="3.8")
    assert done.returncode == 1 and not installs
    assert done.stderr.startswith("setup: Python 3.8 is too old: 3.11 or newer is needed")


@pytest.mark.fault(
    "setup where pip fails, as without a network", "one message with pip's last lines; a second try works"
)
def test_last_lines_of_pip_are_said(tmp_path):
    pip = "for i in 1 2 3 4 5 6 7 8 9; do echo line $i >&2; done; exit 1"
    done, _ = run_setup(tmp_path, pip=pip)
    lines = [f"line {number}" for number in range(2, 10)]
    assert done.returncode == 1 and done.stderr.splitlines() == ["setup: Installing the project failed.", *lines]
    done, installs = run_setup(tmp_path)
    assert done.returncode == 0 and "Ready" in done.stdout and len(installs) == 2


def test_torch_and_detectron2_of_an_environment_stay(tmp_path):
    done, installs = run_setup(tmp_path, torch="2.6.0+cu124", detectron2=True)
    assert done.returncode == 0, done.stderr
    assert len(installs) == 1 and "[demo,dev] torch==2.6.0+cu124" in installs[0] and "omegaconf" not in installs[0]


def test_detectron2_is_installed_by_its_hash_where_there_is_none(tmp_path):
    done, installs = run_setup(tmp_path, detectron2=False)
    assert done.returncode == 0, done.stderr
    project, detectron2 = installs
    assert "omegaconf" in project and "--require-hashes" in detectron2 and "tools/detectron2.txt" in detectron2
    assert "--hash=sha256:" in (ROOT / "tools/detectron2.txt").read_text()


def test_second_setup_does_nothing(tmp_path):
    run_setup(tmp_path)
    done, installs = run_setup(tmp_path)
    assert done.returncode == 0 and done.stdout == "" and len(installs) == 1


def test_another_checkout_is_set_up_anew_in_the_same_environment(tmp_path):
    """The environment holds a link to one checkout: its stamp must not satisfy another one."""
    run_setup(tmp_path)
    other = tmp_path / "other"
    (other / "tools").mkdir(parents=True)
    for name in ("setup.py", "tools/setup_env.py", "tools/detectron2.txt", "constraints.txt"):
        (other / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, other / "tools/setup_env.py", "--python", tmp_path / "python"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Ready" in done.stdout


def test_the_projects_environment_gets_the_versions_that_are_asked_for(tmp_path, monkeypatch):
    """The tested ones, so that what works today works in a year; and those of another choice are installed anew."""
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pip").touch()
    write_python(tmp_path / "bin/python", tmp_path, torch="2.9.0")
    for versions in ("tested", "tested", "lowest", "latest", "tested"):
        setup_env.set_up("", versions)
    tested, lowest, latest, again = installs_so_far(tmp_path)
    assert f"-c {ROOT}/constraints.txt" in tested and f"-c {ROOT}/tools/lowest.txt" in lowest and again == tested
    assert "--upgrade" in latest and "-c" not in latest.split() and "torch==" not in tested + latest


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return {package.lower(): version for package, _, version in (line.partition("==") for line in lines) if version}


def test_pinned_versions_are_those_of_the_requirements():
    """The lowest are the requirements' lower bounds, and the tested ones lie within."""
    values = keywords()
    requirements = [Requirement(text) for text in values["install_requires"]]
    requirements += [Requirement(text) for extra in ("demo", "dev") for text in values["extras_require"][extra]]
    lowest, tested = pinned("tools/lowest.txt"), pinned("constraints.txt")
    for requirement in requirements:
        assert tested[requirement.name.lower()] in requirement.specifier, requirement
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        assert bounds == [lowest.get(requirement.name.lower(), bound) for bound in bounds], requirement
    assert lowest.keys() <= {requirement.name.lower() for requirement in requirements}


@pytest.mark.fault("setup with an interpreter that is not there", "one message names it")
def test_missing_interpreter_is_named():
    command = [sys.executable, "tools/setup_env.py", "--python", "/no/such/python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("setup: PYTHON=/no/such/python")


IMPORT_NAMES = {
    "open_clip_torch": "open_clip",
    "onnx-ir": "onnx_ir",
    "opencv-python": "cv2",
    "Pillow": "PIL",
    "pydensecrf2": "pydensecrf",
    "PyYAML": "yaml",
    "ray[data]": "ray",
}
DETECTRON2 = {"detectron2", "omegaconf"}  # with what it brings for its LazyConfig
# Of videos, the page, exported models, DenseCRF, Ray, GroupViT and Weights & Biases, which say what is missing
OPTIONAL = {"cv2", "fastapi", "gradio", "onnx", "onnx_ir", "onnxruntime", "pyarrow", "pydensecrf", "ray", "supervision"}
OPTIONAL |= {"transformers", "wandb"}
INDIRECT = {"fvcore", "lvis", "tensorboard", "torchvision"}  # Detectron2 imports them


def keywords() -> dict[str, list | dict]:
    """Return install_requires and extras_require of setup.py."""
    call = next(
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    keys = ("install_requires", "extras_require")
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg in keys}


def declared() -> tuple[set[str], set[str]]:
    """Return the import names of install_requires, and of all extras."""
    values = keywords()

    def names(requirements: list[str]) -> set[str]:
        packages = {requirement.split(">")[0] for requirement in requirements}
        return {IMPORT_NAMES.get(package, package) for package in packages}

    return names(values["install_requires"]), names(sum(values["extras_require"].values(), []))


def imported(*patterns: str) -> set[str]:
    """Return the names of all other packages that files import."""
    names = set()
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])

    programs = {path.stem for folder in ("tools", "dev") for path in ROOT.glob(f"{folder}/*.py")}
    return names - set(sys.stdlib_module_names) - DETECTRON2 - {"tcl_d2", "tests", "setuptools"} - programs


def test_dependencies_are_what_the_code_imports():
    required, extras = declared()
    package = imported("tcl_d2/**/*.py", "train_net.py", "datasets/*.py", "demo/*.py")
    programs = imported("tools/*.py", "dev/*.py") - {"gradio_client"}  # which gradio brings
    assert package - required <= OPTIONAL and package | programs <= required | extras
    assert required <= package | programs | INDIRECT
