#!/usr/bin/env python
"""Kill a small training again and again, resume it each time, and compare its losses with an uninterrupted training's.

SIGKILL comes at random moments, also while a checkpoint is written (there is one every third iteration). Every loss of
every run must equal the loss of the uninterrupted training at the same iteration.

    python datasets/prepare_shapes.py
    python dev/kill_and_resume.py --kills 20
"""

import argparse
import os
import random
import signal
import sys
import time
from multiprocessing import get_context, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory

from detectron2.engine import HookBase

from tcl_d2 import load_config
from tcl_d2.engine import Trainer

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4
PERIOD = 3  # iterations between checkpoints


class Recorder(HookBase):
    """Hook that writes each iteration's loss at once."""

    def __init__(self, path: Path):
        self.path = path

    def after_step(self) -> None:
        loss = self.trainer.storage.history("total_loss").latest()
        with self.path.open("a") as file:
            file.write(f"{self.trainer.iter} {loss!r}\n")


def train(environment: dict, folder: str, iterations: int, options: list) -> None:
    """Train in a folder from its last checkpoint on; to be called in a new process.

    Args:
        environment: variables of the process that asks: the fork server has those of the time when it started.
        folder: OUTPUT_DIR, where losses.txt gets a line for each iteration.
        iterations: number of iterations of the whole training.
        options: KEY, VALUE pairs over the configuration.
    """
    os.environ.update(environment)
    set_start_method("fork", force=True)  # of the loader's workers: as in any training, not as this process began

    # Build the trainer
    small = ["OUTPUT_DIR", folder, "SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", PERIOD]
    small += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS", 2, "DATASETS.TEST", (), "VIS_PERIOD", 0]
    small += ["MODEL.TCL.UNFREEZE_ITER", iterations // 2, "DATALOADER.SHUFFLE_BUFFER", 50, *options]
    trainer = Trainer(load_config(ROOT / "configs/shapes/tcl.yaml", small))
    trainer.resume_or_load(resume=True)

    # Train
    recorder = Recorder(Path(folder, "losses.txt"))
    recorder.trainer = trainer
    trainer._hooks.insert(0, recorder)  # before the checkpoint hook: each iteration of a checkpoint is recorded
    trainer.train()


def read(folder: str) -> list[tuple[int, float]]:
    """Return iteration and loss of each line of losses.txt."""
    path = Path(folder, "losses.txt")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # without the last, which may be cut off
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def run(kills: int, iterations: int, seed: int, options: list) -> dict:
    """Train once without a kill and once with kills.

    Args:
        kills: number of kills.
        iterations: number of iterations of each training.
        seed: of the moments of the kills.
        options: KEY, VALUE pairs over the configuration.

    Returns:
        figures by name: `kills`, `iterations recorded` by all runs together, `largest difference` from the
        uninterrupted training's losses, `last iteration`, and whether `all iterations` are recorded.

    Raises:
        RuntimeError: a training ended with an error.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tcl_d2.engine"])  # each start then takes a second
    rng = random.Random(seed)

    with TemporaryDirectory() as whole, TemporaryDirectory() as broken:
        # Train without a kill
        _finish(context, whole, iterations, options)

        # Kill and resume
        for kill in range(kills):
            process = context.Process(target=train, args=(dict(os.environ), broken, iterations, options))
            process.start()
            _wait_for_line(process, broken)
            process.join(rng.uniform(0, 1.5))
            if process.exitcode is None:
                process.kill()
                process.join()
            if process.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"after {kill} kills the training ended with exit code {process.exitcode}")
            print(f"kill {kill + 1}: {len(read(broken))} iterations recorded", flush=True)
        _finish(context, broken, iterations, options)
        expected, losses = dict(read(whole)), read(broken)

    return {
        "kills": kills,
        "iterations recorded": len(losses),
        "largest difference": max(abs(loss - expected[iteration]) for iteration, loss in losses),
        "last iteration": losses[-1][0],
        "all iterations": {iteration for iteration, _ in losses} == set(range(iterations)),
    }


def _finish(context, folder: str, iterations: int, options: list) -> None:
    """Train to the last iteration without a kill."""
    process = context.Process(target=train, args=(dict(os.environ), folder, iterations, options))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a training ended with exit code {process.exitcode}")


def _wait_for_line(process, folder: str) -> None:
    """Wait until a process has recorded an iteration, or has ended: kills before that would stop all progress."""
    before = len(read(folder))
    while process.exitcode is None and len(read(folder)) == before:
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="changes to the configuration")
    args = parser.parse_args()

    result = run(args.kills, args.iterations, args.seed, args.opts)
    for key, value in result.items():
        print(f"{key}: {value}")
    good = result["all iterations"] and result["largest difference"] <= TOLERANCE
    sys.exit(0 if good else "the resumed trainings differ from the uninterrupted one")


if __name__ == "__main__":
    main()
