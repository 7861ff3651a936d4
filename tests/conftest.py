"""Fixtures; --fault-table FILE writes a table of the faults that tests cause; --every-check lets none be skipped."""

import fcntl
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unittest.mock import patch

import pytest

# Before torch is imported: threads that wait then sleep. Else a test with more processes than cores, or two test runs
# at once, take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from tcl_d2 import load_config  # noqa: E402
from tcl_d2.commands.options.prepare import shapes as shapes_options  # noqa: E402
from tcl_d2.commands.prepare import shapes  # noqa: E402
from tests import quick_yaml  # noqa: E402, F401

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # workers beside each other share the cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a script's background job; tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
FAULT_TABLE = """# Faults, and what comes of them
Made by `python -m pytest tests -m fault --fault-table=docs/faults.md`: each row is a test that did this and
saw the outcome. The long runs are `python dev/soak.py` and `python dev/soak_folder.py`: see below.

| fault | outcome | tests |
|---|---|---|
"""
SOAK = "\n## The long run\n"
LACKS = ("GPU", "network namespaces")  # what a machine may lack that cannot be installed
# Of every part, what tells most in a minute: `-m quick`
QUICK = (
    "checkpoint/test_official.py",
    "data/test_image_text.py",
    "utils/test_images.py",
    "data/test_image_text_stream.py",
    "data/test_loader.py",
    "evaluation/test_zero_shot.py",
    "modeling/test_golden.py",
    "modeling/test_losses.py",
    "modeling/test_score_rules.py",
    "modeling/test_text.py",
    "segmentation/test_result.py",
    "test_config.py",
    "test_imports.py",
)


def pytest_addoption(parser) -> None:
    parser.addoption("--fault-table", type=Path, help="file for a table of the tests marked `fault`")
    parser.addoption("--every-check", action="store_true", help="fail if a test is skipped that could run here")


def pytest_configure(config) -> None:
    config.addinivalue_line(
        "markers", "fault(what, outcome): causes a fault, and checks that the outcome is as documented"
    )
    config.addinivalue_line("markers", "quick: a first check of a change, in a minute")
    config.addinivalue_line("markers", "gpu: a check of a device and a precision, see make gpu")


def pytest_collection_modifyitems(items) -> None:
    tests = ROOT / "tests"
    # Slow files first; test_deploy.py takes what test_export.py has made
    items.sort(key=lambda item: (item.path.parent not in (tests, tests / "export"), item.path.stem == "test_deploy"))
    for item in items:
        if item.path.relative_to(tests).as_posix() in QUICK:
            item.add_marker("quick")
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", mark.args))


def skipped_checks(reporter) -> Counter:
    """Count the tests that were skipped, by reason."""
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", []))


def pytest_sessionfinish(session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = skipped_checks(reporter) if session.config.option.every_check and reporter else ()
    if any(not any(lack in reason for lack in LACKS) for reason in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config) -> None:
    for reason, count in skipped_checks(terminalreporter).most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
    if config.option.fault_table is not None:
        write_fault_table(terminalreporter, config.option.fault_table)


def write_fault_table(terminalreporter, path: Path) -> None:
    """Write what tests marked as faults showed; what the file has of the long run stays."""
    results = defaultdict(list)
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    for report in reports:
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "fault":
                    results[tuple(value)].append(report.passed)  # a list, from another process

    # The table, and below it what the file has of the long run
    rows = [
        f"| {fault} | {outcome} | {sum(passed)} of {len(passed)} passed |"
        for (fault, outcome), passed in results.items()
    ]
    long_run = path.read_text().partition(SOAK)[2] if path.exists() else ""
    path.write_text(FAULT_TABLE + "\n".join(rows) + "\n" + SOAK + long_run)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same random numbers in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Callable[[str], AbstractContextManager[Path]]:
    """Gives a folder by its name, one for all workers, which is this one's alone within `with`."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    @contextmanager
    def shared(name: str) -> Iterator[Path]:
        (base / name).mkdir(exist_ok=True)
        with open(base / name / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield base / name

    return shared


def draw_world(root: Path, train: int, labeled: int, val: int) -> None:
    """Draw a small world into a folder of datasets, unless it is there."""
    numbers = f"--train {train} --labeled {labeled} --val {val} --processes 1".split()
    with patch.object(shapes, "Pool", ThreadPool):  # a fork may hang where libraries have started threads
        shapes.main(shapes_options.argument_parser().parse_args(["--root", f"{root}/shapes", *numbers]))


@pytest.fixture(scope="session")
def world(shared_folder) -> Path:
    """A folder of datasets with a small world of 300 training pairs and 12 validation images, one for all workers."""
    with shared_folder("datasets") as root:
        draw_world(root, train=300, labeled=12, val=12)
    return root


@pytest.fixture
def in_world(world, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))
    return world


@pytest.fixture
def shapes_cfg(in_world, tmp_path):
    """The small world's configuration, cut down to a few iterations, without loader processes."""
    small = ["OUTPUT_DIR", tmp_path / "output", "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4]
    small += ["SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1, "MODEL.TCL.UNFREEZE_ITER", 2, "DATASETS.TEST", "()"]
    return load_config(ROOT / "configs/shapes/tcl.yaml", [*small, "DATALOADER.SHUFFLE_BUFFER", 50])
