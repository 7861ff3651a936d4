"""The memory of this process."""

import resource
from pathlib import Path


def process_peak() -> float:
    """Return the peak of this process's memory in MB.

    Linux's ru_maxrss will not do: it is at least the peak of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
