#!/usr/bin/env python
"""Trains on the small world in several processes while a seeded script breaks things; ends with a report.

Processes are killed or asked to stop, shards are cut, overwritten or removed for a while. Each time the run ends it is
started again with --resume. It has survived if training reaches its end, every iteration is in the log with finite
losses, and nothing but the injected faults ended a run.

    python datasets/prepare_shapes.py
    python dev/soak.py                       # 5,000 iterations in 2 processes, a quarter of an hour on 2 cores
    python dev/soak.py --loader 20000        # the loader alone: memory after every 2,000 batches
"""

import argparse
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
LOG_PERIOD = 20  # iterations between Detectron2's log lines


class Shards:
    """Breaks a third of the training shards, in one way at a time, after those of before are mended."""

    def __init__(self, folder: Path, draw: random.Random):
        self.draw = draw
        self.contents = {path: path.read_bytes() for path in sorted(folder.glob("*.tar"))}

    def _some(self) -> list[tuple[Path, bytes]]:
        for path, content in self.contents.items():
            path.write_bytes(content)
        return self.draw.sample(list(self.contents.items()), (len(self.contents) + 2) // 3)

    def cut(self) -> None:
        for path, content in self._some():
            path.write_bytes(content[: self.draw.randrange(len(content))])

    def overwrite(self) -> None:
        for path, content in self._some():
            broken = bytearray(content)
            for _ in range(50):
                start = self.draw.randrange(len(broken) - 200)
                broken[start : start + 200] = self.draw.randbytes(200)
            path.write_bytes(broken)

    def remove(self) -> None:
        for path, _ in self._some():
            path.unlink()


class Training:
    """train_net.py in several processes, started again whenever it ends before its last iteration."""

    def __init__(self, root: Path, folder: Path, processes: int, iterations: int):
        options = ["OUTPUT_DIR", folder, "SOLVER.MAX_ITER", iterations, "SOLVER.IMS_PER_BATCH", 4]
        options += ["SOLVER.CHECKPOINT_PERIOD", 50, "SOLVER.WARMUP_ITERS", 50, "VIS_PERIOD", 0, "DATASETS.TEST", "()"]
        options += ["MODEL.TCL.UNFREEZE_ITER", iterations // 2, "DATALOADER.NUM_WORKERS", 1]
        flags = ["--config-file", "configs/shapes/tcl.yaml", "--resume", "--num-processes", processes]
        self.command = [sys.executable, "train_net.py", *map(str, [*flags, *options])]
        self.env = {**os.environ, "DETECTRON2_DATASETS": str(root)}
        self.folder = folder
        self.output = (folder / "soak.txt").open("wb")
        self.ends: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=self.env, stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def trainers(self) -> list[int]:
        """Process IDs of the training processes, without their loader workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = path.read_text().split() if path.exists() else []
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def signal(self, number: int, pick: Callable[[list[int]], list[int]]) -> None:
        for child in pick(self.trainers()):
            os.kill(child, number)

    def logged(self) -> list[dict]:
        path = self.folder / "metrics.json"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def iteration(self) -> int:
        return max((row["iteration"] for row in self.logged()), default=0)


def inject(training: Training, draw: random.Random, shards: Shards, seconds: float) -> Counter:
    """Breaks something every now and then until the training is at its end -> the faults by kind.

    Args:
        seconds: mean time between faults.
    """
    faults = {
        "a trainer killed (SIGKILL)": lambda: training.signal(signal.SIGKILL, lambda ids: [draw.choice(ids)]),
        "trainers asked to stop (SIGTERM)": lambda: training.signal(signal.SIGTERM, lambda ids: ids),
        "a third of the shards cut at random bytes": shards.cut,
        "a third of the shards overwritten at 50 places": shards.overwrite,
        "a third of the shards removed": shards.remove,
    }
    injected, due, seen = Counter(), time.monotonic() + seconds, 0
    while True:
        code = training.process.poll()
        if code == 0:
            return injected
        if code is not None:
            training.ends[f"exit code {code}"] += 1
            print(
                f"ended with exit code {code} near iteration {training.iteration()}: again, with --resume", flush=True
            )
            training.start()
            seen, due = training.iteration(), time.monotonic() + seconds
        elif time.monotonic() > due and training.iteration() > seen and training.trainers():
            name = draw.choice(list(faults))
            faults[name]()
            injected[name] += 1
            print(f"iteration {training.iteration()}: {name}", flush=True)
            due = time.monotonic() + draw.uniform(0.5, 1.5) * seconds
        time.sleep(0.2)


def soak(iterations: int, processes: int, seed: int, seconds: float) -> bool:
    """Runs it, prints the report; whether all was survived."""
    draw, started = random.Random(seed), time.monotonic()
    world = Path(os.environ.get("DETECTRON2_DATASETS", ROOT / "datasets"), "shapes")
    if not (world / "train").is_dir():
        sys.exit(f"error: no small world at {world}: python datasets/prepare_shapes.py")
    with TemporaryDirectory() as temporary:
        root, folder = Path(temporary), Path(temporary, "output")
        folder.mkdir()
        shutil.copytree(world, root / "shapes")
        training = Training(root, folder, processes, iterations)
        injected = inject(training, draw, Shards(root / "shapes/train", draw), seconds)
        rows = training.logged()
        lost = set(range(LOG_PERIOD - 1, iterations, LOG_PERIOD)) - {row["iteration"] for row in rows}
        finite = all(math.isfinite(value) for row in rows for key, value in row.items() if "loss" in key)
        log = "".join(path.read_text() for path in folder.glob("log.txt*"))
    skipped = Counter(re.findall(r"Skipped a sample \(([a-z 0-9A-Z-]+):", log))
    table = [("fault", name, count) for name, count in sorted(injected.items())]
    table += [("run ended early", name, count) for name, count in sorted(training.ends.items())]
    table += [("warning of skipped data", name, count) for name, count in skipped.most_common()]
    table += [("iterations reached", "", max(row["iteration"] for row in rows) + 1), ("iterations lost", "", len(lost))]
    table += [("all losses finite", "", finite), ("minutes", "", round((time.monotonic() - started) / 60, 1))]
    print(tabulate(table, ("what", "which", "count"), "pipe"))
    return not lost and finite


def watch_loader(batches: int) -> None:
    """Prints the memory of the process after every tenth of the batches of the small world's loader."""
    from tcl_d2 import load_config
    from tcl_d2.data import build_image_text_train_loader

    cfg = load_config(ROOT / "configs/shapes/tcl.yaml", ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1])
    loader, rows = iter(build_image_text_train_loader(cfg)), []
    for _ in range(10):
        for _ in islice(loader, batches // 10):
            pass
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        rows.append(((len(rows) + 1) * (batches // 10), pages * resource.getpagesize() / 2**20))
        print(f"{rows[-1][0]} batches: {rows[-1][1]:.0f} MB", flush=True)
    growth = rows[-1][1] / rows[0][1] - 1
    print(f"growth from the first tenth to the last: {100 * growth:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30, help="mean time between faults")
    parser.add_argument("--loader", type=int, metavar="BATCHES", help="watch the memory of the loader alone")
    args = parser.parse_args()
    if args.loader:
        watch_loader(args.loader)
    elif not soak(args.iterations, args.processes, args.seed, args.seconds):
        sys.exit("error: the training did not survive; see the table")


if __name__ == "__main__":
    main()
