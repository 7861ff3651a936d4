#!/usr/bin/env python
"""Train on two machines, which are two network namespaces of this one: each has its own address and no other way out.

Both launchers (Detectron2's --num-machines, torchrun) train a small TCL, with shards that the first machine serves by
HTTP, and without a kill and with one of the second machine's process. It is checked that

- the losses are those of one process that gets the batches of both,
- each pair comes once an epoch over both machines,
- after the kill the first machine ends with a reason within a minute,
- the resumed training, and one that is resumed by two processes of one machine, has the losses of the whole one.

Needs the right to make network namespaces (root, `ip` of iproute2).

    python datasets/prepare_shapes.py
    python dev/two_machines.py
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from kill_and_resume import read as read_losses
from torch import Tensor

from tcl_d2 import load_config
from tcl_d2.commands.train import check
from tcl_d2.data.dataset_files import datasets_root
from tcl_d2.engine import Trainer, argument_parser, launch
from tcl_d2.runs.processes import unwrap_ddp

ROOT = Path(__file__).resolve().parent.parent
ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "veth0"  # the name in either machine
TOLERANCE = 1e-5  # of losses, relative: sums over parts of a batch are rounded otherwise
PATIENCE = 60.0  # seconds within which the other machine ends
LAUNCHERS = ("detectron2", "torchrun")


# ------------------------------------------------------------------------------------------------- a training


class Recorder(HookBase):
    """Hook that makes the masks' noise that of the whole batch, and keeps each iteration's inputs and loss."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.batches: dict[int, list[dict]] = {}

    def before_train(self) -> None:
        model = unwrap_ddp(self.trainer._trainer.model)
        model.register_forward_pre_hook(lambda _, inputs: self.batches.update({self.trainer.iter: inputs[0]}))
        model.sim2mask.noise = self.noise

    def noise(self, shape: Sequence[int], device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(self.trainer.iter)
        size, rank = shape[0], comm.get_rank()
        whole = torch.rand(size * comm.get_world_size(), *shape[1:], generator=generator).clamp(1e-6, 1 - 1e-6)
        return whole[rank * size : (rank + 1) * size].to(device)

    def after_step(self) -> None:
        if comm.is_main_process():
            with (self.folder / "losses.txt").open("a") as file:
                file.write(f"{self.trainer.iter} {self.trainer.storage.history('total_loss').latest()!r}\n")

    def after_train(self) -> None:
        torch.save(self.batches, self.folder / f"batches_{comm.get_rank()}.pt")


class ReplayTrainer(Trainer):
    """Trains one process on the batches that several have recorded in OUTPUT_DIR/../both."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> list[list[dict]]:
        paths = sorted(Path(cfg.OUTPUT_DIR).with_name("both").glob("batches_*.pt"))
        recorded = [torch.load(path, weights_only=True) for path in paths]
        return [sum((batches[iteration] for batches in recorded), []) for iteration in sorted(recorded[0])]


def work(args: argparse.Namespace) -> None:
    """Be one process of a training in the folder of OUTPUT_DIR."""
    cfg = load_config(ROOT / "configs/shapes/tcl.yaml", args.opts)
    check(cfg, eval_only=False, weights="")  # registers the shards' addresses as a dataset
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    seed_all_rng(cfg.SEED)
    if args.count:
        loader = islice(Trainer.build_train_loader(cfg), cfg.SOLVER.MAX_ITER)
        keys = [sample["key"] for batch in loader for sample in batch]
        Path(cfg.OUTPUT_DIR, f"keys_{comm.get_rank()}.json").write_text(json.dumps(keys))
        return

    trainer = (ReplayTrainer if args.replay else Trainer)(cfg)
    trainer.resume_or_load(args.resume)
    recorder = Recorder(Path(cfg.OUTPUT_DIR))
    recorder.trainer = trainer
    trainer._hooks.insert(0, recorder)  # before the checkpoint hook: each iteration of a checkpoint is recorded
    trainer.train()


# ------------------------------------------------------------------------------------------------- two machines


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def kill_all(name: str) -> None:
    """Kill all processes of a namespace."""
    for pid in ip("netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def machines() -> Iterator[list[str]]:
    """Make two network namespaces that reach each other, and yield their names."""
    names = [f"tcl_d2_{os.getpid()}_{number}" for number in (0, 1)]
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            stack.callback(kill_all, name)
        ip("link", "add", INTERFACE, "netns", names[0], "type", "veth", "peer", "name", INTERFACE, "netns", names[1])
        for name, address in zip(names, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                ip("-n", name, "link", "set", interface, "up")
        yield names


def start(name: str, command: Sequence[object], log: Path) -> subprocess.Popen:
    """Start python COMMAND in a namespace, with its output in a file."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = ["ip", "netns", "exec", name, sys.executable, *map(str, command)]
    with log.open("w") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)


def train_command(launcher: str, rank: int, options: Sequence[object], *flags: str) -> list[object]:
    """Return the command of one of the two machines."""
    script = [ROOT / "dev/two_machines.py", "--work", *flags]
    if launcher == "torchrun":
        places = ["--nnodes", 2, "--nproc-per-node", 1, "--node-rank", rank, "--master-addr", ADDRESSES[0]]
        return ["-m", "torch.distributed.run", *places, *script, *options]
    places = ["--num-machines", 2, "--machine-rank", rank, "--dist-url", f"tcp://{ADDRESSES[0]}:29500"]
    return [*script, *places, *options]


def train_on_both(
    names: Sequence[str], launcher: str, options: Sequence[object], folder: Path, *flags: str
) -> list[subprocess.Popen]:
    """Start a training on both machines."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [*options, "OUTPUT_DIR", folder]
    commands = [train_command(launcher, rank, options, *flags) for rank in (0, 1)]
    return [start(name, command, folder / f"log_{name[-1]}") for name, command in zip(names, commands)]


def finish(processes: Sequence[subprocess.Popen], folder: Path) -> None:
    """Wait for a training's end; RuntimeError with the ends of its logs if it failed."""
    if any([process.wait() for process in processes]):
        logs = [path.read_text()[-2000:] for path in sorted(folder.glob("log_*"))]
        raise RuntimeError("\n".join([f"the training in {folder} failed:", *logs]))


def kill_second(names: Sequence[str], launcher: str, options: Sequence[object], folder: Path, after: int) -> float:
    """Train, and kill all of the second machine after so many iterations; return the seconds until the first ended."""
    processes = train_on_both(names, launcher, options, folder)
    while len(read_losses(folder)) < after:
        if processes[0].poll() is not None:
            finish(processes, folder)
        time.sleep(0.05)

    kill_all(names[1])
    start = time.monotonic()
    if processes[0].wait(timeout=PATIENCE) == 0:
        raise RuntimeError("the first machine ended as if nothing had happened")
    return time.monotonic() - start


def difference(folder: Path, expected: Path) -> float:
    """Return the largest relative difference of a training's losses from another's, which has all iterations."""
    whole = dict(read_losses(expected))
    losses = read_losses(folder)
    if {iteration for iteration, _ in losses} != whole.keys():
        raise RuntimeError(f"{folder} has not the iterations of {expected}")
    return max(abs(loss - whole[iteration]) / abs(whole[iteration]) for iteration, loss in losses)


# ------------------------------------------------------------------------------------------------- the checks


def check_launcher(launcher: str, names: Sequence[str], options: list[object], kill_after: int, root: Path) -> None:
    """Train, kill and resume on both machines with a launcher, and print what came out."""
    both, one, killed, moved = (root / launcher / name for name in ("both", "one", "killed", "moved"))
    finish(train_on_both(names, launcher, options, both), both)

    # One process with the batches of both
    command = [ROOT / "dev/two_machines.py", "--work", "--replay", *options, "OUTPUT_DIR", one]
    one.mkdir()
    finish([start(names[0], command, one / "log_0")], one)
    report(f"{launcher}: largest difference of losses from one process", difference(one, both), TOLERANCE)

    # A kill, and on with the same machines, or with two processes of one
    seconds = kill_second(names, launcher, options, killed, kill_after)
    report(f"{launcher}: seconds until the other machine ended", seconds, PATIENCE)
    print(f"  its last line: {(killed / 'log_0').read_text().strip().splitlines()[-1]}")
    subprocess.run(["cp", "-r", killed, moved], check=True)
    finish(train_on_both(names, launcher, options, killed, "--resume"), killed)
    report(f"{launcher}: largest difference after the kill", difference(killed, both), 0)
    command = [ROOT / "dev/two_machines.py", "--work", "--resume", "--num-processes", 2]
    finish([start(names[0], [*command, *options, "OUTPUT_DIR", moved], moved / "log_0")], moved)
    report(f"{launcher}: largest difference on one machine", difference(moved, both), 0)


def check_epoch(names: Sequence[str], options: list[object], num_pairs: int, root: Path) -> None:
    """Read an epoch on both machines, and print how many of the pairs have not come once."""
    folder = root / "epoch"
    one_epoch = ["SOLVER.MAX_ITER", num_pairs // 4, "DATALOADER.SHUFFLE_BUFFER", 1]  # no pair waits for a later epoch
    finish(train_on_both(names, "detectron2", [*options, *one_epoch], folder, "--count"), folder)
    counts = Counter(key for path in folder.glob("keys_*.json") for key in json.loads(path.read_text()))
    report(f"of {num_pairs} pairs did not come once", num_pairs - sum(n == 1 for n in counts.values()), 0)


def report(what: str, value: float, most: float) -> None:
    """Print a figure; exit if it is too large."""
    print(f"{what}: {value:.3g}", flush=True)
    if value > most:
        sys.exit(f"error: expected at most {most:g}")


def run(args: argparse.Namespace) -> None:
    """Make the machines, and check both launchers and the sharing of data."""
    shards = datasets_root() / "shapes/train"
    with TemporaryDirectory() as temporary, machines() as names:
        root = args.output or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        start(names[0], ["-m", "http.server", "-d", shards, "-b", ADDRESSES[0], "8080"], root / "server.log")
        address = f"http://{ADDRESSES[0]}:8080/{{00000..{len(list(shards.glob('*.tar'))) - 1:05d}}}.tar"
        options = ["DATASETS.TRAIN", f"('{address}',)", "DATASETS.TEST", "()", "VIS_PERIOD", 0]
        options += ["SOLVER.MAX_ITER", args.iterations, "MODEL.TCL.UNFREEZE_ITER", args.iterations // 2]
        options += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS", 2, "SOLVER.CHECKPOINT_PERIOD", 3]
        options += ["DATALOADER.SHUFFLE_BUFFER", 50, "DATALOADER.NUM_WORKERS", 1]
        stats = [json.loads(path.read_text()) for path in shards.glob("*_stats.json")]
        check_epoch(names, options, sum(each["successes"] for each in stats), root)
        for launcher in args.launchers:
            check_launcher(launcher, names, options, args.iterations // 2, root)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--replay", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=LAUNCHERS)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--output", type=Path, help="keep the trainings in this folder")
    args = parser.parse_args()
    if args.work:
        launch(work, args)
    else:
        run(args)


if __name__ == "__main__":
    main()
