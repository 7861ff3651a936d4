"""Time work beside another program: two processes by turns, one with the commands' waiting of threads, one without."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from measure import DEVICE, time_call, trained_like, vit_b16

from tcl_d2 import load_config
from tcl_d2.commands import SPINS
from tcl_d2.commands.options.prepare import shapes as shapes_options
from tcl_d2.commands.prepare import shapes
from tcl_d2.engine import Trainer

LIBGOMP_SPINS = "300000"  # libgomp's own, where there are not more threads than cores
WORKERS = (0, 1, 2)
ITERATIONS = 10  # of the small world's training that are timed together
_calls: dict[str, Callable[[], object]] = {}


def prepare(folder: str) -> None:
    """Build in this process what is timed: a step of 8 pairs, a crop, and trainings of the small world by workers."""
    torch.manual_seed(0)
    model = trained_like(build_model(vit_b16("TEST.ZERO_SHOT.TEXT_CACHE", "")))
    images, tokens = torch.randn(8, 3, 224, 224, device=DEVICE), torch.randint(1, 49000, (8, 77), device=DEVICE)
    inputs = [{"image": torch.zeros(3, 448, 448), "labels_only": True}]
    model.set_text_embeddings(torch.randn(21, model.clip.embed_dim))

    def step() -> None:
        sum(model.train().compute_losses(images, tokens).values()).backward()

    def crop() -> None:
        with torch.no_grad():
            model.eval()(inputs)

    _calls.update({"training step, 8 pairs": step, "a crop of 448, 21 classes": crop})
    for workers in WORKERS:
        options = ["DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", f"{folder}/{workers}", "VIS_PERIOD", 0]
        trainer = Trainer(load_config("shapes/tcl.yaml", ["MODEL.DEVICE", DEVICE, *options]))
        _calls[f"{ITERATIONS} iterations of the small world, {workers} workers"] = partial(_train, trainer)
    for call in _calls.values():
        call()


def _train(trainer: Trainer) -> None:
    with EventStorage():
        for _ in range(ITERATIONS):
            trainer.run_step()


def names() -> list[str]:
    """List what is timed."""
    return list(_calls)


def time_of(name: str) -> float:
    """Return the seconds of a call in this process."""
    return time_call(_calls[name])


@contextmanager
def _process(folder: str, spins: str) -> Iterator[ProcessPoolExecutor]:
    """Start a process whose threads look so often for work before they sleep."""
    with patch.dict(os.environ, DETECTRON2_DATASETS=folder, GOMP_SPINCOUNT=spins):
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        pool.submit(prepare, f"{folder}/{spins}").result()
    with pool:
        yield pool


@contextmanager
def _busy_loop() -> Iterator[None]:
    """Run another program, which is never idle, on one core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def neighbours(repeat: int) -> list[dict]:
    """Measure work alone and beside a busy program, with the commands' GOMP_SPINCOUNT against libgomp's own."""
    with TemporaryDirectory() as folder:
        # Draw the small world, and build everything in both processes
        with patch.dict(os.environ, DETECTRON2_DATASETS=folder):
            numbers = ["--train", "640", "--labeled", "1", "--val", "1"]
            shapes.main(shapes_options.argument_parser().parse_args(["--root", f"{folder}/shapes", *numbers]))
        with _process(folder, SPINS) as ours, _process(folder, LIBGOMP_SPINS) as reference:
            pools = ours, reference
            rows = []
            for name in ours.submit(names).result():
                # By turns: alone and beside the loop, and both processes, each of which begins every other round
                rounds = []
                for number in range(min(repeat, 5)):
                    order = pools[:: -1 if number % 2 else 1]
                    alone = {pool: pool.submit(time_of, name).result() for pool in order}
                    with _busy_loop():
                        beside = {pool: pool.submit(time_of, name).result() for pool in order}
                    rounds.append([*map(alone.get, pools), *map(beside.get, pools)])

                times = [median(column) for column in zip(*rounds)]
                for part, (mine, other) in ((name, times[:2]), ("  beside a busy loop", times[2:])):
                    rows.append({"part": part, "unit": "s", "ours": mine, "reference": other})
    return rows
