#!/usr/bin/env python
"""Check and measure everything on a GPU, and write one report; without a GPU it says so and ends.

The checks are the tests marked `gpu`: golden figures in fp32 (without TF32), float16 and bfloat16, PAMR and the sums
over all pairs against the CPU's, training under AMP and resumed, NCCL where there are two GPUs, little memory. The
measurements are those of dev/benchmark.py.

    python dev/gpu_report.py --output output/gpu.md
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from measure import machine
from tabulate import tabulate

from tcl_d2.utils.files import replacing

ROOT = Path(__file__).resolve().parent.parent
CHECKS = ("check", "outcome", "largest difference", "bound")
FIGURES = ("part", "unit", "ours", "reference", "ratio", "difference")


class Outcomes:
    """Collects a row for each test, as pytest's plugin."""

    def __init__(self):
        self.rows: list[tuple] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test measured, or that it did not run."""
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.partition("::")[2]
        figures = [(key, value) for key, value in report.user_properties if key != "fault"] or [("", ("", ""))]
        for quantity, (difference, bound) in figures:
            self.rows.append((f"{name} {quantity}".strip(), report.outcome, difference, bound))


def check(*options: str, tests: Path = ROOT / "tests") -> tuple[list[tuple], bool]:
    """Run the tests of devices; return a row for each figure, and whether all passed."""
    outcomes = Outcomes()
    code = pytest.main(["-q", "-m", "gpu", *options, str(tests)], plugins=[outcomes])
    return outcomes.rows, code == pytest.ExitCode.OK


def measure(*names: str) -> list[list]:
    """Run dev/benchmark.py, all of it or the parts that are named; return its rows."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "benchmark.json")
        subprocess.run([sys.executable, ROOT / "dev/benchmark.py", *names, "--output", path], check=True)
        rows = json.loads(path.read_text())["rows"]
    return [[row.get(key) for key in FIGURES] for row in rows]


def write_report(path: Path, checks: list[tuple], figures: list[list]) -> None:
    """Write both tables, and on what they were made, as Markdown."""
    parts = [
        f"# {machine()}\ntorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPUs\n",
        f"## Checks\n{tabulate(checks, CHECKS, 'pipe', floatfmt='.2g')}\n",
        f"## Measurements\n{tabulate(figures, FIGURES, 'pipe', floatfmt='.3g')}\n",
    ]
    with replacing(path) as unfinished:
        unfinished.write_text("\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/gpu.md"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch finds no GPU: nothing was checked or measured, and no report written")
        return

    checks, passed = check()
    write_report(args.output, checks, [])  # stays if the measurements stop
    write_report(args.output, checks, measure())
    print(args.output)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
