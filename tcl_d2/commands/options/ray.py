"""The options by which commands share their work over a cluster of Ray."""

import argparse
import os
import re

from ...runs.ray_cluster import LOCAL
from ..inputs import SUFFIXES


def add_ray_options(parser: argparse.ArgumentParser) -> None:
    """Add --ray and what its workers take."""
    group = parser.add_argument_group("over a cluster of Ray (pip install '.[ray]')")
    group.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        type=read_address,
        metavar="ADDRESS",
        help="share the work over the cluster at HOST:PORT, or 'auto' for one that runs on this machine; without an "
        "address, or 'local', one is started here and ended afterwards",
    )
    group.add_argument("--ray-workers", type=_count, metavar="N", help="workers, a model each; default: all that fit")
    group.add_argument("--ray-cpus", type=float, default=1, metavar="N", help="CPUs of a worker; default: 1")
    group.add_argument(
        "--ray-gpus", type=float, default=0, metavar="N", help="GPUs of a worker, such as 0.5; default: 0, on the CPU"
    )


def read_address(text: str) -> str:
    """Read the address of --ray; argparse.ArgumentTypeError for anything else, such as an input in its place."""
    if text in (LOCAL, "auto") or re.fullmatch(r"[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", text):
        return text
    is_input = os.path.lexists(text) or any(text.lower().endswith(suffix) for suffix in SUFFIXES)
    hint = ": it looks like an input, so give --ray after the inputs" if is_input else ""
    raise argparse.ArgumentTypeError(f"'{text}' is no address of a cluster, HOST:PORT or auto{hint}")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is less than 1")
    return count
