#!/usr/bin/env python3
"""Set up what `make` needs: a virtual environment, the project with its dependencies, and Detectron2.

It needs only Python's standard library, can be interrupted and repeated, and ends at once where nothing is missing.
With --python it uses an existing environment: nothing there is replaced by another version without need, torch and
Detectron2 not at all.
"""

from __future__ import annotations  # so that an old Python gets as far as the message about its version

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
DETECTRON2 = ROOT / "tools/detectron2.txt"  # pinned by hash
VERSIONS = {  # pip's options
    "tested": ("-c", ROOT / "constraints.txt"),
    "lowest": ("-c", ROOT / "tools/lowest.txt"),
    "latest": ("--upgrade", "--upgrade-strategy=eager"),
}
DETECTRON2_NEEDS = ("cloudpickle", "hydra-core", "omegaconf", "packaging", "termcolor", "yacs")  # not in setup.py
OFFICIAL = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
PROBE = """
import importlib.metadata, importlib.util, json, sys, sysconfig
versions = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
print(json.dumps({
    "prefix": sys.prefix,
    "packages": sysconfig.get_path("purelib"),
    "torch": [f"{name}=={versions[name]}" for name in ("torch", "torchvision") if name in versions],
    "detectron2": importlib.util.find_spec("detectron2") is not None,
}))
"""


class SetupError(Exception):
    """What is wrong, in one message."""


def run(*command: str | Path, step: str) -> str:
    """Run a command and return what it printed; SetupError, with the end of its output, if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise SetupError("\n".join([f"{step} failed.", *output[-8:]]))
    return done.stdout


def check_python(python: str | Path) -> None:
    """Raise SetupError if an interpreter is older than Python 3.11."""
    version = run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])", step=f"Running {python}").strip()
    if tuple(map(int, version.split("."))) < (3, 11):
        raise SetupError(f"Python {version} is too old: 3.11 or newer is needed. Give one: make test PYTHON=python3.11")


def find_python(given: str) -> str | Path:
    """Return the interpreter that is given, or .venv's; make .venv if it is not there."""
    if given:
        if shutil.which(given) is None:
            raise SetupError(f"PYTHON={given}: there is no such file or command.")
        check_python(given)
        return given

    python = VENV / "bin/python"
    check_python(python if python.exists() else sys.executable)
    if not (VENV / "bin/pip").exists():  # also if an earlier attempt was interrupted
        print(f"Making {VENV}", flush=True)
        run(sys.executable, "-m", "venv", VENV, step="Making a virtual environment")
    return python


def install(python: str | Path, environment: dict, versions: tuple) -> None:
    """Install the project, and the redistribution of Detectron2 where there is none.

    `versions` are pip's options of what is installed.
    """
    pip = (python, "-m", "pip", "install", "-q")
    needs = () if environment["detectron2"] else DETECTRON2_NEEDS
    print("Installing the project and its dependencies (with torch: some gigabytes, minutes)", flush=True)
    run(*pip, "-e", f"{ROOT}[demo,dev]", *versions, *needs, step="Installing the project")

    if not environment["detectron2"]:
        print(f"Installing Detectron2 from PyPI. The official way, if you prefer it:\n  {OFFICIAL}", flush=True)
        wheel = ("--only-binary=:all:", "--python-version=3.10", "--implementation=cp", "--no-deps", "--require-hashes")
        run(*pip, *wheel, "--target", environment["packages"], "-r", DETECTRON2, step="Installing Detectron2")


def set_up(given: str, versions: str) -> None:
    """Install what is missing, and keep a stamp of what decided it: with the same stamp nothing is missing."""
    python = find_python(given)
    environment = json.loads(run(python, "-c", PROBE, step=f"Running {python}"))
    stamp = Path(environment["prefix"], ".tcl_d2_setup")
    options = tuple(environment["torch"]) if given else VERSIONS[versions]
    sources = [ROOT / "setup.py", DETECTRON2, Path(__file__), *(part for part in options if isinstance(part, Path))]
    decisive = [str(ROOT), str(options), *(path.read_text() for path in sources)]
    fingerprint = hashlib.sha256("\0".join(decisive).encode()).hexdigest()
    if environment["detectron2"] and stamp.exists() and stamp.read_text() == fingerprint:
        return

    install(python, environment, options)
    version = run(python, "-c", "import detectron2 as d; print(d.__version__, d.__file__)", step="Importing Detectron2")
    stamp.write_text(fingerprint)
    print(f"Ready: {python}, Detectron2 {version.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="", help="an environment's interpreter; default: make and use .venv")
    parser.add_argument("--versions", choices=VERSIONS, default="tested", help="what .venv gets (default: tested)")
    args = parser.parse_args()
    try:
        set_up(args.python, args.versions)
    except SetupError as error:
        sys.exit(f"setup: {error}")


if __name__ == "__main__":
    main()
