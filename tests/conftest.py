"""Fixtures, and --fault-table FILE, which writes a table of the faults that the tests marked `fault` try."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tcl_d2 import load_config

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(2)
FAULT_TABLE = """# Faults, and what comes of them
Made by `python -m pytest tests -m fault --fault-table=docs/faults.md`: each row is a test that did this and
saw the outcome. The long run is `python dev/soak.py`: see below.

| fault | outcome | tests |
|---|---|---|
"""
SOAK = "\n## The long run\n"


def pytest_addoption(parser) -> None:
    parser.addoption("--fault-table", type=Path, help="file for a table of the tests marked `fault`")


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "fault(what, outcome): does a fault, and sees that the outcome is as documented")
    config.addinivalue_line("markers", "quick: a first check of a change, in a minute")


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", mark.args))


def pytest_terminal_summary(terminalreporter, config) -> None:
    if config.option.fault_table is None:
        return
    results = defaultdict(list)
    for report in sum((terminalreporter.stats.get(kind, []) for kind in ("passed", "failed")), []):
        for _, row in report.user_properties if report.when == "call" else ():
            results[row].append(report.passed)
    rows = [f"| {what} | {outcome} | {sum(good)} of {len(good)} passed |" for (what, outcome), good in results.items()]
    path = config.option.fault_table
    kept = path.read_text().partition(SOAK) if path.exists() else ("", SOAK, "")
    path.write_text(FAULT_TABLE + "\n".join(rows) + "\n" + "".join(kept[1:]))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A data sets' root with a small world of 300 training pairs and 12 validation images."""
    root = tmp_path_factory.mktemp("datasets")
    command = [sys.executable, "datasets/prepare_shapes.py", "--root", root / "shapes", "--train", "300", "--val", "12"]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True)
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
