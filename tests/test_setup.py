"""Setup: it fails early with one clear message, and the dependency list is what the code imports."""

import ast
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import setup_env  # noqa: E402


def test_old_python_is_refused():
    with pytest.raises(setup_env.SetupError, match="Python 3.8 is too old: 3.10"):
        setup_env.check_python((3, 8, 1))


def test_full_disk_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9))
    with pytest.raises(setup_env.SetupError, match="1.0 GB free .* 9 GB are needed"):
        setup_env.check_disk(tmp_path, 9)


def test_no_network_is_said_at_once(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(setup_env.SetupError, match="package index cannot be reached"):
        setup_env.check_network(sys.executable)


def test_installed_detectron2_is_left_alone(monkeypatch):
    monkeypatch.setattr(setup_env, "run", lambda *command, what: "True")  # has_module's answer; pip would raise below
    calls = []
    monkeypatch.setattr(setup_env, "run", lambda *command, what: calls.append(command) or "True")
    setup_env.install_detectron2(sys.executable)
    assert len(calls) == 1 and "pip" not in calls[0]


def test_another_checkout_is_set_up_anew_in_the_same_environment(monkeypatch, tmp_path):
    """The environment holds a link to one checkout: its mark must not satisfy another one."""
    (tmp_path / "tools").mkdir()
    for name in ("setup.py", "tools/setup_env.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    before = setup_env.fingerprint(sys.executable)
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    assert setup_env.fingerprint(sys.executable) != before


def test_errors_are_one_line_without_a_traceback():
    command = [sys.executable, "tools/setup_env.py", "--python", "/no/such/python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("setup: PYTHON=/no/such/python")


IMPORT_NAMES = {"open_clip_torch": "open_clip", "Pillow": "PIL", "PyYAML": "yaml"}
INDIRECT = {"fvcore", "tensorboard", "torchvision"}  # by Detectron2


def declared() -> tuple[set[str], set[str]]:
    """Import names of install_requires, and of all extras."""
    call = next(
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    values = {
        k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in ("install_requires", "extras_require")
    }

    def names(requirements):
        bare = {requirement.split(">")[0] for requirement in requirements}
        return {IMPORT_NAMES.get(name, name) for name in bare}

    return names(values["install_requires"]), names(sum(values["extras_require"].values(), []))


def imported(*patterns: str) -> set[str]:
    found = set()
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    programs = {path.stem for folder in ("tools", "dev") for path in ROOT.glob(f"{folder}/*.py")}
    return found - set(sys.stdlib_module_names) - {"tcl_d2", "detectron2", "tests", "setuptools"} - programs


def test_dependencies_are_what_the_code_imports():
    required, extras = declared()
    package, tools = imported("tcl_d2/**/*.py", "train_net.py", "datasets/*.py"), imported("tools/*.py", "dev/*.py")
    assert package <= required and tools <= required | extras
    assert required <= package | tools | INDIRECT
