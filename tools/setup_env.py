#!/usr/bin/env python3
"""Sets up everything that `make` needs: a virtual environment, the project with its dependencies, and Detectron2.

Standard library alone. Can be repeated (at once where all is there) and interrupted. With --python, an existing
environment is used: what it has is kept at its version, only what is missing is added.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OLDEST_PYTHON = (3, 10)
TORCH_GIGABYTES = 9  # the default builds of torch and torchvision with their CUDA libraries, and room to unpack

# Detectron2 is not on PyPI under its name. This redistribution has the Python files of the official commit a59f0563
# (April 2024). Its wheel is tagged for Python 3.10, for the sake of a compiled part that nothing here needs.
DETECTRON2 = "sal-detectron2==0.7.2"
DETECTRON2_HASH = "sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
DETECTRON2_NEEDS = [
    "fvcore",
    "iopath",
    "omegaconf",
    "hydra-core",
    "yacs",
    "pycocotools",
    "cloudpickle",
    "tabulate",
    "termcolor",
    "matplotlib",
    "tqdm",
    "tensorboard",
    "packaging",
]
OFFICIAL = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"


class SetupError(Exception):
    """What is wrong and what to do, in one message."""


def run(*command: str | Path, what: str) -> str:
    """Runs a command and returns what it printed; SetupError, with the end of its output, if it failed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise SetupError(f"{what} failed.\n{tail}")
    return done.stdout.strip()


def ask(python: Path, code: str) -> str:
    return run(python, "-c", code, what=f"Running {python}")


def has_module(python: Path, name: str) -> bool:
    return ask(python, f"import importlib.util as u; print(u.find_spec({name!r}) is not None)") == "True"


def check_python(version: tuple[int, ...]) -> None:
    if tuple(version[:2]) < OLDEST_PYTHON:
        found, needed = (".".join(map(str, numbers[:2])) for numbers in (version, OLDEST_PYTHON))
        raise SetupError(
            f"Python {found} is too old: {needed} or newer is needed. Give one: make test PYTHON=python3.11"
        )


def check_disk(folder: Path, gigabytes: float) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise SetupError(
            f"Too little disk space: {free:.1f} GB free at {folder}, about {gigabytes} GB are needed to install torch. "
            "Free some, or use an environment that has torch: make test PYTHON=/path/to/python"
        )


def check_network(python: Path) -> None:
    """Asks the package index for one small file, so that a missing network is said at once and not after minutes."""
    with tempfile.TemporaryDirectory() as folder:
        command = (
            python,
            "-m",
            "pip",
            "--timeout",
            "10",
            "--retries",
            "1",
            "download",
            "-q",
            "--no-deps",
            "-d",
            folder,
        )
        try:
            run(*command, "packaging", what="Reaching the package index")
        except SetupError as error:
            raise SetupError(
                "The package index cannot be reached, and packages are missing. Check the network and pip's settings "
                f"(pip config list).\n{error}"
            ) from None


def make_venv() -> Path:
    check_python(sys.version_info)
    python = VENV / "bin/python"
    if not python.exists():
        print(f"Making {VENV}", flush=True)
        try:
            run(sys.executable, "-m", "venv", VENV, what="Making a virtual environment")
        except SetupError as error:
            shutil.rmtree(VENV, ignore_errors=True)
            raise SetupError(f"{error}\nOn Debian: apt-get install python3-venv") from None
    return python


def installed_torch(python: Path) -> list[str]:
    """Constraints that keep an environment's torch and torchvision as they are."""
    code = (
        "import importlib.metadata as m\n"
        "names = {d.metadata['Name'] for d in m.distributions()} & {'torch', 'torchvision'}\n"
        "print('\\n'.join(f'{n}=={m.version(n)}' for n in sorted(names)))"
    )
    return ask(python, code).splitlines()


def install_project(python: Path) -> None:
    kept = installed_torch(python)
    if not any(line.startswith("torch==") for line in kept):
        check_disk(Path(ask(python, "import sys; print(sys.prefix)")), TORCH_GIGABYTES)
    check_network(python)
    print("Installing the project and its dependencies (with torch: some gigabytes, minutes)", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(kept))
        constraints.flush()
        command = (python, "-m", "pip", "install", "-q", "-c", constraints.name, "-e", f"{ROOT}[demo,dev]")
        run(*command, what="Installing the project")


def install_detectron2(python: Path) -> None:
    """Installs the redistribution, checked by its hash, unless a Detectron2 is there: that one is never replaced."""
    if has_module(python, "detectron2"):
        return
    print(
        f"Installing Detectron2 from PyPI ({DETECTRON2}). The official way, if you prefer it:\n  {OFFICIAL}", flush=True
    )
    run(python, "-m", "pip", "install", "-q", *DETECTRON2_NEEDS, what="Installing what Detectron2 needs")
    target = ask(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirement:
        requirement.write(f"{DETECTRON2} --hash={DETECTRON2_HASH}\n")
        requirement.flush()
        wheel = ("--only-binary=:all:", "--python-version", "3.10", "--implementation", "cp", "--no-deps")
        command = (python, "-m", "pip", "install", "-q", "--require-hashes", *wheel, "--target", target)
        run(*command, "-r", requirement.name, what="Installing Detectron2")


def fingerprint(python: Path) -> str:
    """Of all that decides what is installed: the same again means that there is nothing to do."""
    parts = [
        str(python).encode(),
        str(ROOT).encode(),
        *((ROOT / name).read_bytes() for name in ("setup.py", "tools/setup_env.py")),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def set_up(given: str | None) -> Path:
    python = Path(shutil.which(given) or given) if given else make_venv()
    if given and not python.exists():
        raise SetupError(f"PYTHON={given}: there is no such file or command.")
    version = ask(python, "import sys; print(*sys.version_info[:2])")
    check_python(tuple(map(int, version.split())))
    stamp = Path(ask(python, "import sys; print(sys.prefix)")) / ".tcl_d2_setup"
    if stamp.exists() and stamp.read_text() == fingerprint(python) and has_module(python, "detectron2"):
        return python
    install_project(python)
    install_detectron2(python)
    place = ask(python, "import detectron2; print(detectron2.__version__, detectron2.__file__)")
    print(f"Ready: {python}, Detectron2 {place}", flush=True)
    stamp.write_text(fingerprint(python))
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="", help="an environment's interpreter; default: make and use .venv")
    try:
        set_up(parser.parse_args().python or None)
    except SetupError as error:
        sys.exit(f"setup: {error}")


if __name__ == "__main__":
    main()
