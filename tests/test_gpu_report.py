"""dev/gpu_report.py: what `make gpu` writes, seen here with the checks of bfloat16 on the CPU and one measurement."""

import pytest
import torch

from tests import running
from tests.conftest import ROOT

REPORT = ROOT / "dev/gpu_report.py"
WRITE_A_PART = """
import runpy, sys
from pathlib import Path
from types import SimpleNamespace

report, output = {!r}, Path({!r})
sys.path.insert(0, str(Path(report).parent))
import gpu_report

def run_here(command, check):
    sys.argv = [str(part) for part in command[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")

gpu_report.subprocess = SimpleNamespace(run=run_here)
tests = gpu_report.ROOT / "tests/test_devices.py"
options = ["-k", "cosines_of_proxyclip", "-p", "no:cacheprovider", "-W", "ignore"]
rows, passed = gpu_report.check(*options, tests=tests)
gpu_report.write_report(output, rows, gpu_report.measure("scoring", "--repeat", "1"))
sys.exit(not passed)
"""


def test_report_has_checks_and_measurements(tmp_path):
    """On a machine where no dataset was prepared; both in one process, which saves the seconds of their imports."""
    path = tmp_path / "report/gpu.md"
    done = running.run(tmp_path / "none", "-c", WRITE_A_PART.format(str(REPORT), str(path)))
    assert done.returncode == 0, done.stdout + done.stderr
    report = path.read_text()
    (check,) = [line for line in report.splitlines() if "[cpu-bfloat16] scores" in line]
    name, outcome, difference, bound = (cell.strip() for cell in check.strip("|").split("|"))
    assert outcome == "passed" and 0 < float(difference) <= float(bound) == 0.02
    (measurement,) = [line for line in report.splitlines() if line.startswith("| scoring")]
    assert "| ms " in measurement or "| s " in measurement


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = running.run(tmp_path, REPORT, "--output", tmp_path / "gpu.md")
    assert done.returncode == 0 and "torch finds no GPU" in done.stdout, done.stderr
    assert not (tmp_path / "gpu.md").exists()
