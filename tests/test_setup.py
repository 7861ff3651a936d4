"""Setup: it ends early with one clear message, and the dependency list is what the code imports."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

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
    environment = {"prefix": str(folder), "packages": f"{folder}/packages", "torch": [f"torch=={torch}"]}
    values = {"folder": folder, "version": version, "pip": pip}
    values["environment"] = json.dumps({**environment, "detectron2": detectron2})
    python = folder / "python"
    python.write_text(FAKE_PYTHON.format(**values))
    python.chmod(0o755)

    command = [sys.executable, "tools/setup_env.py", "--python", str(python)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    commands = (folder / "commands").read_text().splitlines()
    return done, [line for line in commands if line.startswith("-m pip install")]


@pytest.mark.fault("setup with Python 3.8", "one message says which version is needed")
def test_old_python_is_refused(tmp_path):
    done, installs = run_setup(tmp_path, version="3.8")
    assert done.returncode == 1 and not installs
    assert done.stderr.startswith("setup: Python 3.8 is too old: 3.10 or newer is needed")


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
    for name in ("setup.py", "tools/setup_env.py", "tools/detectron2.txt"):
        (other / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, other / "tools/setup_env.py", "--python", tmp_path / "python"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Ready" in done.stdout


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
}
DETECTRON2 = {"detectron2", "omegaconf"}  # with what it brings for its LazyConfig
# Of videos, the page, exported models, DenseCRF, GroupViT and Weights & Biases, which say what is missing
OPTIONAL = {"cv2", "gradio", "onnx", "onnx_ir", "onnxruntime", "pydensecrf", "supervision", "transformers", "wandb"}
INDIRECT = {"fvcore", "lvis", "tensorboard", "torchvision"}  # Detectron2 imports them


def declared() -> tuple[set[str], set[str]]:
    """Return the import names of install_requires, and of all extras."""
    call = next(
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    keys = ("install_requires", "extras_require")
    values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg in keys}

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
