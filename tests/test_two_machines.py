"""Training on two machines, which are two network namespaces of this one; dev/two_machines.py has the long checks."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests import running
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "dev"))
import two_machines  # noqa: E402

OPTIONS = ["DATASETS.TEST", "()", "VIS_PERIOD", "0", "SOLVER.MAX_ITER", "3", "MODEL.TCL.UNFREEZE_ITER", "1"]
OPTIONS += ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.WARMUP_ITERS", "1", "DATALOADER.NUM_WORKERS", "0"]
# Be a process of a namespace, as by `ip netns exec`, which would import all anew
RUN = """
import ctypes, os, runpy, sys
if ctypes.CDLL(None).setns(os.open(f"/run/netns/{name}", os.O_RDONLY), 0x40000000):
    sys.exit("setns failed")
os.environ["GLOO_SOCKET_IFNAME"] = interface
sys.argv = command
sys.path.insert(0, os.path.dirname(command[0]))
runpy.run_path(command[0], run_name="__main__")
"""


@pytest.fixture
def machines():
    try:
        with two_machines.machines() as names:
            yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")


def test_losses_are_those_of_one_process(machines, in_world, tmp_path):
    """Which gets the batches of both."""
    both, one = tmp_path / "both", tmp_path / "one"
    with ExitStack() as stack:
        scripts = []
        for rank, name in enumerate(machines):
            command = two_machines.train_command("detectron2", rank, [*OPTIONS, "OUTPUT_DIR", both])
            values = f"name, interface, command = {(name, two_machines.INTERFACE, list(map(str, command)))!r}"
            scripts.append(stack.enter_context(running.started(in_world, "-c", values + RUN)))
        for script in scripts:
            done = script.wait()
            assert done.returncode == 0, done.stderr

    done = running.run(in_world, "dev/two_machines.py", "--work", "--replay", *OPTIONS, "OUTPUT_DIR", one)
    assert done.returncode == 0, done.stderr
    assert two_machines.difference(one, both) < two_machines.TOLERANCE
