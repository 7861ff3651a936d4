#!/usr/bin/env python
"""Train on the small world in several processes while a seeded script breaks things; print a report.

Processes are killed or asked to stop; shards are cut, overwritten or removed for a while. Each time the run ends it is
started again with --resume. The training has survived if it reaches its end, and every iteration is in the log with
finite losses.

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
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from soak_folder import resident_memory
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
LOG_PERIOD = 20  # iterations between Detectron2's log lines


class Shards:
    """The training shards, a third of which can be broken at a time; shards that were broken before are mended."""

    def __init__(self, folder: Path, rng: random.Random):
        self.rng = rng
        self.contents = {path: path.read_bytes() for path in sorted(folder.glob("*.tar"))}

    def _mend_and_sample(self) -> list[tuple[Path, bytes]]:
        for path, content in self.contents.items():
            path.write_bytes(content)
        return self.rng.sample(list(self.contents.items()), math.ceil(len(self.contents) / 3))

    def cut(self) -> None:
        for path, content in self._mend_and_sample():
            path.write_bytes(content[: self.rng.randrange(len(content))])

    def overwrite(self) -> None:
        for path, content in self._mend_and_sample():
            broken = bytearray(content)
            for _ in range(50):
                start = self.rng.randrange(len(broken) - 200)
                broken[start : start + 200] = self.rng.randbytes(200)
            path.write_bytes(broken)

    def remove(self) -> None:
        for path, _ in self._mend_and_sample():
            path.unlink()


class Training:
    """train_net.py in several processes; it is started again whenever it ends before its last iteration."""

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
        """Return the IDs of the training processes, without their loader workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = path.read_text().split() if path.exists() else []
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def logged(self) -> list[dict]:
        """Return the rows of metrics.json."""
        path = self.folder / "metrics.json"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def iteration(self) -> int:
        return max((row["iteration"] for row in self.logged()), default=0)


class Saboteur:
    """What breaks a training: one fault at a time, at random moments.

    Attributes:
        injected: number of faults so far, by name.
    """

    def __init__(self, training: Training, shards: Shards, rng: random.Random, seconds: float):
        """Prepare the faults.

        Args:
            training: the training to break.
            shards: its training data.
            rng: chooses faults and moments.
            seconds: mean time between faults.
        """
        self.training = training
        self.rng = rng
        self.seconds = seconds
        self.injected: Counter[str] = Counter()
        self.faults = {
            "a trainer killed (SIGKILL)": self._kill,
            "trainers asked to stop (SIGTERM)": self._ask_to_stop,
            "a third of the shards cut at random bytes": shards.cut,
            "a third of the shards overwritten at 50 places": shards.overwrite,
            "a third of the shards removed": shards.remove,
        }

    def _kill(self) -> None:
        os.kill(self.rng.choice(self.training.trainers()), signal.SIGKILL)

    def _ask_to_stop(self) -> None:
        for process in self.training.trainers():
            os.kill(process, signal.SIGTERM)

    def break_now(self) -> None:
        """Inject a random fault."""
        name = self.rng.choice(list(self.faults))
        self.faults[name]()
        self.injected[name] += 1
        print(f"iteration {self.training.iteration()}: {name}", flush=True)

    def work(self) -> None:
        """Break the training every now and then, and start it again, until it is at its last iteration."""
        due = time.monotonic() + self.seconds
        resumed_at = 0
        while (code := self.training.process.poll()) != 0:
            if code is not None:
                # Start the training again, and leave it in peace until it has made progress
                resumed_at = self.training.iteration()
                self.training.ends[f"exit code {code}"] += 1
                print(f"ended with exit code {code} near iteration {resumed_at}: again, with --resume", flush=True)
                self.training.start()
                due = time.monotonic() + self.seconds
            elif time.monotonic() > due and self.training.iteration() > resumed_at and self.training.trainers():
                self.break_now()
                due = time.monotonic() + self.rng.uniform(0.5, 1.5) * self.seconds
            time.sleep(0.2)


def soak(iterations: int, processes: int, seed: int, seconds: float) -> bool:
    """Train and break the training, print the report, and return whether the training has survived."""
    rng = random.Random(seed)
    start_time = time.monotonic()
    world = Path(os.environ.get("DETECTRON2_DATASETS", ROOT / "datasets"), "shapes")
    if len(list(world.glob("train/*.tar"))) < 3:  # a third of them is broken at a time
        sys.exit(f"error: no small world of 3 shards or more at {world}: python datasets/prepare_shapes.py")

    with TemporaryDirectory() as temporary:
        # Train on a copy of the world
        root, folder = Path(temporary), Path(temporary, "output")
        folder.mkdir()
        shutil.copytree(world, root / "shapes")
        training = Training(root, folder, processes, iterations)
        saboteur = Saboteur(training, Shards(root / "shapes/train", rng), rng, seconds)
        saboteur.work()

        # Read the logs
        rows = training.logged()
        lost = set(range(LOG_PERIOD - 1, iterations, LOG_PERIOD)) - {row["iteration"] for row in rows}
        finite = all(math.isfinite(value) for row in rows for key, value in row.items() if "loss" in key)
        log = "".join(path.read_text() for path in folder.glob("log.txt*"))

    # Print the report
    skipped = Counter(re.findall(r"Skipped a sample \(([a-z 0-9A-Z-]+):", log))
    table = [("fault", name, count) for name, count in sorted(saboteur.injected.items())]
    table += [("run ended early", name, count) for name, count in sorted(training.ends.items())]
    table += [("warning of skipped data", name, count) for name, count in skipped.most_common()]
    table += [("iterations reached", "", max(row["iteration"] for row in rows) + 1), ("iterations lost", "", len(lost))]
    table += [("all losses finite", "", finite), ("minutes", "", round((time.monotonic() - start_time) / 60, 1))]
    print(tabulate(table, ("what", "which", "count"), "pipe"))
    return not lost and finite


def watch_loader(batches: int) -> None:
    """Print the memory of this process ten times while the small world's loader gives so many batches."""
    from tcl_d2 import load_config
    from tcl_d2.data import build_image_text_train_loader

    cfg = load_config(ROOT / "configs/shapes/tcl.yaml", ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1])
    loader = iter(build_image_text_train_loader(cfg))
    megabytes = []
    for tenth in range(1, 11):
        for _ in islice(loader, batches // 10):
            pass
        megabytes.append(resident_memory(os.getpid()))
        print(f"{tenth * (batches // 10)} batches: {megabytes[-1]:.0f} MB", flush=True)

    growth = megabytes[-1] / megabytes[0] - 1
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
