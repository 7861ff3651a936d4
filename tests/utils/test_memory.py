"""The memory of a process."""

import subprocess
import sys

import numpy as np

from tcl_d2.utils.memory import process_peak

SIZE = 400  # MB


def test_peak_is_the_process_s_own_not_that_of_its_parent():
    np.ones(SIZE * 2**17)
    assert process_peak() > SIZE
    code = "from tcl_d2.utils.memory import process_peak; print(process_peak())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < float(child.stdout) < SIZE / 4
