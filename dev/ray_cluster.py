#!/usr/bin/env python
"""Segment very many small pictures over a cluster of Ray that loses its driver, a worker and a node; report.

The run has survived if every picture has the result that one process gives it, byte for byte and once, every broken one
is named, and the workers' memory stays as it is. An undisturbed run is compared with `segment --num-processes 2`.

    python dev/ray_cluster.py                  # 20,000 pictures, 20 minutes on two idle cores
    python dev/ray_cluster.py --pictures 600
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from ray.cluster_utils import Cluster
from soak_folder import resident_memory
from tabulate import tabulate

from tcl_d2.commands.result_folder import SETTINGS
from tcl_d2.data.shapes import draw_scene

SIDE = 32  # pixels
PICTURES_PER_FOLDER = 1000
BREAK_EVERY = 199  # pictures
# The small world's model, at the pictures' own size and without PAMR
OPTIONS = ["--opts", "INPUT.MIN_SIZE_TEST", 0, "TEST.ZERO_SHOT.REFINE", "none", "TEST.ZERO_SHOT.IMS_PER_BATCH", 64]
OPTIONS += ["DATALOADER.NUM_WORKERS", 1]
# Ray's workers let others go first: without that they are compared as equals on a machine that is not quite idle
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
os.environ.update(ENVIRONMENT)
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def draw(folder: Path, count: int) -> set[str]:
    """Draw the pictures, each unlike the others, and return the names of the broken ones."""
    scenes = [draw_scene(seed=7, index=index, size=SIDE).image for index in range(32)]
    broken = set()
    for index in range(count):
        path = folder / f"{index // PICTURES_PER_FOLDER:04d}" / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index % BREAK_EVERY == 7:
            path.write_bytes(b"<html>no picture")
            broken.add(f"{path.parent.name}/{path.stem}")
        else:
            scene = scenes[index % len(scenes)]
            Image.fromarray(np.roll(scene, (index // 32 % SIDE, index // 32 // SIDE), (0, 1))).save(path)
    return broken


# ------------------------------------------------------------------------------------------- runs


def start(photos: Path, output: Path, *options: object) -> subprocess.Popen:
    """Start the command; what it prints goes to a file beside the output."""
    command = [sys.executable, "-m", "tcl_d2", "segment", photos, "--classes", "brick, lava, grass", "--background"]
    command += ["--output", output, "--no-overlay", *options, *OPTIONS]
    with output.with_suffix(".log").open("a") as log:
        return subprocess.Popen([*map(str, command)], stdout=log, stderr=subprocess.STDOUT)


def watch(process: subprocess.Popen, output: Path, disturb: Callable[[int], None] = lambda done: None) -> dict:
    """Wait for a run, and call `disturb` with the number of shards done.

    Returns:
        its exit code, seconds, and the resident memory in MB of each worker over time.
    """
    begin, memory = time.monotonic(), {}
    while process.poll() is None:
        for pid in workers():
            memory.setdefault(pid, []).append(resident_memory_or_none(pid))
        disturb(len(records(output)))
        time.sleep(1)
    return {"code": process.returncode, "seconds": time.monotonic() - begin, "memory": memory}


def workers() -> list[int]:
    """Return the processes that have a model: Ray's actors name themselves."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::MapWorker"):
                pids.append(int(path.parent.name))
        except OSError:  # it has ended
            pass
    return sorted(pids)


def resident_memory_or_none(pid: int) -> float | None:
    try:
        return resident_memory(pid)
    except OSError:
        return None


def records(output: Path) -> list[Path]:
    return [path for path in output.glob("*.json") if path.name != SETTINGS]


def run_disturbed(photos: Path, output: Path, shards: int, size: int) -> tuple[list[dict], list[str]]:
    """Run over two nodes; kill the driver, go on, then kill a worker and take a node away; return the runs."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    second = cluster.add_node(**NODE)
    options = ["--ray", cluster.address, "--shard-size", size, "--resume"]
    events = []

    def kill_driver(done: int) -> None:
        if done >= 0.25 * shards and process.poll() is None:
            process.kill()
            events.append(f"driver killed after {done} shards")

    def lose(done: int) -> None:
        if done >= 0.45 * shards and len(events) == 1 and workers():
            os.kill(workers()[0], signal.SIGKILL)
            events.append(f"worker killed after {done} shards")
        if done >= 0.65 * shards and len(events) == 2:
            cluster.remove_node(second, allow_graceful=False)
            events.append(f"node taken away after {done} shards")

    try:
        process = start(photos, output, *options)
        runs = [watch(process, output, kill_driver)]
        runs.append(watch(start(photos, output, *options), output, lose))
    finally:
        cluster.shutdown()
    return runs, events


# ------------------------------------------------------------------------------------------- the report


def read_labels(output: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each picture of labels, also those in .tar files."""
    for path in sorted(output.rglob("*_labels.png")):
        yield str(path.relative_to(output)), path.read_bytes()
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith("_labels.png"):
                    yield member.name, tar.extractfile(member).read()


def check(expected: dict[str, bytes], broken: set[str], output: Path) -> dict[str, int]:
    """Compare results with those of one process, and return the numbers of what is wrong."""
    found = list(read_labels(output))
    counts = Counter(name for name, _ in found)
    named = Counter(name for path in records(output) for name in json.loads(path.read_text())["broken"])
    return {
        "pictures lost": len(expected.keys() - counts.keys()),
        "pictures twice": sum(count > 1 for count in (counts + named).values()),
        "pictures that one process does not have": len(counts.keys() - expected.keys()),
        "labels that differ": sum(expected.get(name, content) != content for name, content in found),
        "broken pictures that are not named": len(broken - named.keys()),
        "files that are not whole": len(list(output.glob(".*.tmp"))),
    }


def growth(memory: dict[int, list[float | None]]) -> str:
    """Describe the memory of the workers: at the end of their first quarter, and in the last tenth."""
    lines = []
    for samples in memory.values():
        known = [sample for sample in samples if sample]
        early, late = known[len(known) // 4 : len(known) // 4 + 5], known[-max(1, len(known) // 10) :]
        if len(known) >= 20:
            change = 100 * (np.mean(late) / np.mean(early) - 1)
            lines.append(f"{np.mean(early):.0f} to {np.mean(late):.0f} MB ({change:+.1f} %)")
    return ", ".join(lines)


def run(count: int, size: int) -> bool:
    """Do all runs; print the report, return whether all is right."""
    with TemporaryDirectory(dir="/tmp") as temporary:
        photos, folder = Path(temporary, "photos"), Path(temporary)
        broken = draw(photos, count)
        print(f"{count} pictures are drawn, {len(broken)} of them broken", flush=True)

        # Undisturbed, in one process, in two, and over Ray
        rows, rates, wrong = [], {}, {}
        for name, options in {
            "one process": [],
            "--num-processes 2": ["--num-processes", 2],
            "--ray": ["--ray", "--ray-workers", 2, "--shard-size", size],
        }.items():
            output = folder / re.sub(r"\W+", "_", name)
            output.mkdir()
            outcome = watch(start(photos, output, *options), output)
            rates[name] = count / outcome["seconds"]
            rows.append((name, f"exit code {outcome['code']}, {rates[name]:.0f} pictures a second, start included"))
            print(*rows[-1], flush=True)
            if name == "one process":
                expected = dict(read_labels(output))
        rows.append(("--ray / --num-processes 2", f"{rates['--ray'] / rates['--num-processes 2']:.2f}"))
        rows.append(("memory of the workers", growth(outcome["memory"])))
        wrong["--ray"] = check(expected, broken, folder / "_ray")

        # Disturbed
        output = folder / "disturbed"
        output.mkdir()
        runs, events = run_disturbed(photos, output, -(-count // size), size)
        wrong["disturbed"] = check(expected, broken, output)
        rows.append(("two nodes, disturbed", ", ".join(events)))
        codes = ", ".join(f"{outcome['code']} after {outcome['seconds']:.0f} s" for outcome in runs)
        rows.append(("exit codes", codes))
        print(output.with_suffix(".log").read_text()[-600:])

    rows += [(f"{name}: {what}", number) for name, found in wrong.items() for what, number in found.items()]
    print(tabulate(rows, ("what", "outcome"), "pipe"))
    is_whole = len(expected) == count - len(broken) and not any(sum(found.values()) for found in wrong.values())
    return is_whole and len(events) == 3 and runs[-1]["code"] == 1  # for the broken ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--shard-size", type=int, default=500)
    args = parser.parse_args()
    if not run(args.pictures, args.shard_size):
        sys.exit("error: the run did not survive; see the table")


if __name__ == "__main__":
    main()
