"""Runs the project's scripts as a user does, without the seconds of importing torch and Detectron2 each time."""

import gc
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from functools import partial
from multiprocessing import get_context, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.multiprocessing

from tcl_d2.utils.locks import locked_folder
from tests.conftest import ROOT

_CONTEXT = get_context("forkserver")
_MODULES = ["tests.running", "detectron2.engine", "tcl_d2.engine", "tcl_d2.predictor", "timm.data"]
_CONTEXT.set_forkserver_preload([*_MODULES, "torch.utils.cpp_extension"])  # the last by default_setup


def _script(command: list[str], folder: Path, env: dict[str, str], files: list[str], spawn: bool) -> None:
    """Be a process that runs python COMMAND, with standard input, output and error in files."""
    os.setsid()  # signals reach it and its children alone
    gc.freeze()  # collections then pass over what the server has imported
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # multiprocessing has closed it
    set_start_method("fork", force=True)  # of loader workers, as in a process that a shell starts
    start = partial(_start_like_new if spawn else _fork_processes, torch.multiprocessing.start_processes)
    torch.multiprocessing.start_processes = start

    # Run
    os.chdir(folder)
    os.environ.update(env)
    if command[0] == "-c":
        sys.argv, sys.path[0] = command[:1], ""
        exec(command[1], {"__name__": "__main__"})
    elif command[0] == "-m":
        sys.argv, sys.path[0] = command[1:], str(folder)
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str((folder / command[0]).parent)
        runpy.run_path(str(folder / command[0]), run_name="__main__")


def _fork_processes(start_processes: Callable, fn: Callable, *args: object, **options: object) -> object:
    """Start the processes of a launcher as torch does, but forked; spawned ones import all again."""
    return start_processes(partial(_forked, fn), *args, **{**options, "start_method": "fork"})


def _forked(function: Callable, *args: object) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a spawned process has it
    function(*args)


def _start_like_new(start_processes: Callable, fn: Callable, *args: object, **options: object) -> object:
    """Start the processes of a launcher from the server: as spawned ones, they know nothing of the first's work."""
    return start_processes(partial(_like_new, fn, dict(os.environ)), *args, **{**options, "start_method": "forkserver"})


def _like_new(function: Callable, env: dict[str, str], *args: object) -> None:
    os.environ.update(env)
    _forked(function, *args)


class Script:
    """A script that runs, or has run: `pid`, `returncode`, `stdout` and `stderr`, as of a subprocess."""

    def __init__(self, process, args: list[str], files: list[Path]):
        self.args, self._process, self._files = args, process, files
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> subprocess.CompletedProcess:
        """Wait until it ends, and return what it wrote; subprocess.TimeoutExpired after `timeout` seconds."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return subprocess.CompletedProcess(self.args, self.poll(), *(file.read_text() for file in self._files))


@contextmanager
def started(
    world: Path, *command: object, folder: Path = ROOT, stdin: str = "", spawn: bool = False
) -> Iterator[Script]:
    """Start python COMMAND in `folder`, with the datasets in `world`; kill it and its children at the end.

    With `spawn`, the processes that its launcher starts are as new ones, which a user's are. Else they are forked from
    the first, and know what it has imported and registered.
    """
    command = [str(part) for part in command]
    env = {"DETECTRON2_DATASETS": str(world)}
    with TemporaryDirectory() as temporary:
        files = [Path(temporary, name) for name in ("in", "out", "err")]
        for file in files:
            file.write_text(stdin if file.name == "in" else "")

        process = _CONTEXT.Process(target=_script, args=(command, folder, env, [str(file) for file in files], spawn))
        with chdir(ROOT):  # where the server finds this file
            process.start()
        try:
            yield Script(process, command, files[1:])
        finally:
            with suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def holder(folder: Path, purpose: str) -> Iterator[int]:
    """Start a process that has a folder's lock, and that has a child, as a loader's worker, which outlives it."""
    child = os.fork()
    if child == 0:
        try:
            with locked_folder(folder, purpose, "its folder"):
                if os.fork() == 0:
                    time.sleep(20)
                    os._exit(0)
                (folder / "ready").touch()
                time.sleep(60)
        finally:
            os._exit(1)

    # Wait until it has the folder
    while not (folder / "ready").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.01)

    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def run(world: Path, *command: object, **options) -> subprocess.CompletedProcess:
    """Run python COMMAND, with the options of `started`."""
    with started(world, *command, **options) as script:
        return script.wait()


def start_processes(function: Callable, args: tuple, count: int) -> None:
    """Run function(rank, *args) in processes of the preloaded server, as torch.multiprocessing.spawn in new ones."""
    torch.multiprocessing.start_processes(function, args, count, start_method="forkserver")


def check_error(done: subprocess.CompletedProcess, *parts: str) -> None:
    """Check that a process ended with one message that has these parts, without a stack of calls."""
    assert done.returncode != 0 and "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    for part in parts:
        assert part in message
