"""Runs the project's scripts as a user does, without the seconds of importing torch and Detectron2 each time."""

import os
import runpy
import subprocess
import sys
from multiprocessing import get_context, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import ROOT

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["detectron2.engine", "tcl_d2.engine", "tcl_d2.predictor", "timm.data"])


def _script(command: list[str], folder: Path, env: dict[str, str], files: list[str]) -> None:
    """Be a process that runs python COMMAND, with standard input, output and error in files."""
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # multiprocessing has closed it
    set_start_method("fork", force=True)  # of loader workers, as in a process that a shell starts
    os.chdir(folder)
    os.environ.update(env)
    if command[0] == "-m":
        sys.argv, sys.path[0] = command[1:], str(folder)
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str((folder / command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


def run(world: Path, *command: object, folder: Path = ROOT, stdin: str = "") -> subprocess.CompletedProcess:
    """Run python COMMAND in `folder`, with the datasets in `world`."""
    command = [str(part) for part in command]
    env = {"DETECTRON2_DATASETS": str(world)}
    with TemporaryDirectory() as temporary:
        files = [str(Path(temporary, name)) for name in ("in", "out", "err")]
        Path(files[0]).write_text(stdin)

        process = _CONTEXT.Process(target=_script, args=(command, folder, env, files))
        process.start()
        process.join()
        output = [Path(file).read_text() if Path(file).exists() else "" for file in files[1:]]
    return subprocess.CompletedProcess(command, process.exitcode, *output)


def check_error(done: subprocess.CompletedProcess, *parts: str) -> None:
    """Check that a process ended with one message that has these parts, without a stack of calls."""
    assert done.returncode != 0 and "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    for part in parts:
        assert part in message
