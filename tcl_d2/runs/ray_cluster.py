"""A cluster of Ray: joining it or starting a local one, checking its nodes, and sharing work among its actors."""

import argparse
import logging
import os
import pickle
import platform
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.files import remove_unfinished
from ..utils.imports import import_optional
from ..version import __version__

LOCAL = "local"  # in place of an address
_PATIENCE = 10.0  # seconds until a cluster, or a node of it, has answered


class Share(NamedTuple):
    """The workers of a run.

    Attributes:
        workers: their number; None for as many as the cluster has room for.
        cpus, gpus: what each takes; parts of a GPU let several share it.
    """

    workers: int | None = None
    cpus: float = 1
    gpus: float = 0


@contextmanager
def joined_actors(
    args: argparse.Namespace, folder: Path, worker: type, *arguments: object
) -> Iterator[Callable[[Sequence[object]], Iterator[dict]]]:
    """Join the cluster that the options of commands/options/ray.py name; yield map_on_actors with their workers."""
    with cluster(args.ray, str(folder)):
        share = Share(args.ray_workers, args.ray_cpus, args.ray_gpus)
        yield partial(map_on_actors, worker, arguments, share=share)


@contextmanager
def cluster(address: str, folder: str) -> Iterator[None]:
    """Join the cluster at HOST:PORT, or "auto" for one on this machine; or start a LOCAL one, and end it afterwards.

    Args:
        folder: for the results, which every node must see.

    Raises:
        ConnectionError: no cluster answers there.
        RuntimeError: Ray is not installed, a node has other versions, or it cannot write into the folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of each pool of Ray Data's own
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a later version's default
    ray = import_optional("ray", "--ray", "'ray[data]'")
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    if ":" in address:
        _knock(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, logging_level=logging.CRITICAL, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError) as error:  # of a cluster that has ended, or of other versions
        raise type(error)(f"--ray {address}: {error}") from None
    try:
        _check_nodes(folder)
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)  # which Ray has replaced by its own, for good


def _knock(address: str) -> None:
    """Raise a ConnectionError at once unless something answers: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except OSError as error:
        raise ConnectionError(
            f"--ray {address}: no cluster answers there ({error}): start one by 'ray start --head', or give --ray "
            "without an address for one on this machine alone"
        ) from None


def _check_nodes(folder: str) -> None:
    """Raise a RuntimeError for a node of other versions, or that cannot write into the folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = versions()
    describe = ray.remote(num_cpus=0, max_retries=0)(_describe)
    answers = [
        describe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(folder)
        for node in nodes
    ]
    for node, answer in zip(nodes, answers):
        name = f"--ray: the node {node['NodeManagerAddress']}"
        try:
            there, can_write = ray.get(answer, timeout=6 * _PATIENCE)
        except Exception as error:  # Ray has many types
            raise RuntimeError(f"{name} cannot run tcl_d2 {__version__}: {reason(error)}") from None
        others = [f"{key} {there.get(key)} (here {value})" for key, value in here.items() if there.get(key) != value]
        if others:
            raise RuntimeError(f"{name} has other versions: {', '.join(others)}. Install the same on all nodes")
        if not can_write:
            raise RuntimeError(
                f"{name} cannot write into {folder}: give an --output on a file system that all nodes share"
            )


def _describe(folder: str) -> tuple[dict[str, str], bool]:
    """Describe the node that this runs on, and remove what killed workers left there in the folder."""
    can_write = os.access(folder, os.W_OK)
    if can_write:
        remove_unfinished(folder)
    return versions(), can_write


def versions() -> dict[str, str]:
    """Return the versions that all nodes must share, by name."""
    import ray

    return {"Python": ".".join(platform.python_version_tuple()[:2]), "ray": ray.__version__, "tcl_d2": __version__}


def map_on_actors(worker: type, arguments: Sequence[object], items: Sequence[object], share: Share) -> Iterator[dict]:
    """Yield what actors return for each item, as they finish.

    An item whose actor or node is lost goes to another: it may be worked on twice, and never less than once. Exactly
    once is what a worker makes of it, whose result depends on the item alone, comes to its place in one step, and is
    found there by whoever comes second. No bookkeeping of the cluster's is needed, which would be lost with its driver.

    Args:
        worker: a class; each actor makes one of `arguments`, and calls it with an item. It works in this process's
            folder, for relative paths.

    Raises:
        RuntimeError: a worker raised an error.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # half an hour by default, which a large shard may take
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it prints the stack of an error that is raised here

    # A block for each item, so that each result comes when it is there
    rows = [{"item": pickle.dumps(item)} for item in items]
    count = share.workers or _count_room(ray.cluster_resources(), share)
    pool = ray.data.ActorPoolStrategy(size=min(count, len(rows)), max_tasks_in_flight_per_actor=1)
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(os.getcwd(), worker, arguments),
        batch_size=1,
        compute=pool,
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )
    try:
        for row in results.iter_rows():
            if row["error"]:
                raise RuntimeError(row["error"])
            yield pickle.loads(row["result"])
    except ray.exceptions.RayError as error:
        raise RuntimeError(reason(error)) from None


class _Actor:
    """Makes a worker and calls it; hands on an error as a text, of which Ray would make pages."""

    def __init__(self, folder: str, worker: type, arguments: Sequence[object]):
        self._folder = folder
        self._make = partial(worker, *arguments)
        self._worker = None

    def __call__(self, batch: dict) -> dict[str, list]:
        try:
            os.chdir(self._folder)
            self._worker = self._worker or self._make()
            return {"result": [pickle.dumps(self._worker(pickle.loads(batch["item"][0])))], "error": [""]}
        except Exception as error:
            return {"result": [b""], "error": [str(error) or type(error).__name__]}


def _count_room(resources: dict[str, float], share: Share) -> int:
    """Return how many workers the cluster has room for; RuntimeError if none."""
    needs = {"CPU": share.cpus, "GPU": share.gpus}
    count = min(int(resources.get(name, 0) / need + 1e-6) for name, need in needs.items() if need)
    if not count:
        raise RuntimeError(
            f"--ray: a worker needs {share.cpus:g} CPU and {share.gpus:g} GPU, but the cluster has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}: see --ray-cpus and --ray-gpus"
        )
    return count


def reason(error: Exception) -> str:
    """Return the last line of an error that came from a worker, without the stack of calls."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    last = lines[-1] if lines else type(cause).__name__
    return re.sub(r"^[\w.]*(Error|Exception): ", "", last)
