"""The processes of a run: one, one per GPU, several on a CPU, or those that torchrun or Slurm has started."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from inspect import signature
from multiprocessing import get_start_method, set_start_method
from typing import Any

import torch
from detectron2.engine import create_ddp_model
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm
from torch import distributed, nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run main(args) in every process; if one dies, the others are ended, and this one exits with the reason."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        join_torchrun()
        main(args)
        return

    _check_arguments(args)
    if args.num_processes > 1:
        _prepare_cpu(args.num_processes)
    num_processes = max(args.num_gpus, args.num_processes)
    if num_processes > 1:
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches each process; this one waits until they end
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it names each process that it ends
        _ignore_import_warnings()

    try:
        work = (main, args, get_start_method())
        launch_on_gpus(_work, num_processes, args.num_machines, args.machine_rank, args.dist_url, args=work)
    except ProcessRaisedException as error:
        hint = ""
        if args.num_machines > 1:
            hint = "\nIf the connection to another machine was lost, its log says why; --resume goes on on all of them"
        sys.exit(f"error: process {error.error_index} failed, the others were ended:\n{error}{hint}")
    except ProcessExitedException as error:
        _exit_like(error)


def is_first_process() -> bool:
    """Return whether this is the first process of a run, also before those of torchrun have joined."""
    return comm.is_main_process() and ("TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0")


def _check_arguments(args: argparse.Namespace) -> None:
    if args.num_processes < 1:
        sys.exit("error: --num-processes is at least 1")
    if args.num_gpus > 1 and args.num_processes > 1:
        sys.exit("error: give --num-gpus or --num-processes (on the CPU), not both")
    if args.num_machines > 1 and args.dist_url == "auto":
        sys.exit("error: --num-machines needs the first machine's address: give --dist-url tcp://HOST:PORT")
    if args.num_gpus > max(1, torch.cuda.device_count()):
        sys.exit(f"error: --num-gpus is {args.num_gpus}, but torch finds {torch.cuda.device_count()}")


def _prepare_cpu(num_processes: int) -> None:
    """Set the environment for several processes on the CPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Detectron2 starts processes on the CPU where it finds no GPU
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else each takes all cores, and waits for the others


def _ignore_import_warnings() -> None:
    """Ignore in new processes, which import Detectron2 first, the warnings that `without_warnings` leaves out."""
    given = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [given, "ignore:`torch.jit.script` is:FutureWarning"]))


def _exit_like(error: ProcessExitedException) -> None:
    # With status 1 the process has said why; beyond 128 it was stopped by a signal, as the log says
    if error.exit_code == 1 or error.exit_code > 128:
        sys.exit(error.exit_code)
    how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with exit code {error.exit_code}"
    sys.exit(f"error: process {error.error_index} {how}, the others were ended; --resume goes on")


def _work(main: Callable, args: argparse.Namespace, method: str) -> None:
    # A spawned process would spawn its loader workers too: that takes seconds for each, and their log is lost.
    set_start_method(method, force=True)
    main(args)


def join_torchrun() -> None:
    """Join the processes that torchrun has started, on GPUs where there are any."""
    local = int(os.environ["LOCAL_RANK"])
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if has_gpu else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def all_reduce_max(number: int, device: torch.device) -> int:
    """Return the largest number that any process has."""
    if comm.get_world_size() == 1:
        return number
    largest = torch.tensor(number, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest)


def wrap_ddp(model: nn.Module) -> nn.Module:
    """Return the model under DistributedDataParallel where there are several processes."""
    device = next(model.parameters()).device
    device_ids = None if device.type == "cpu" else [comm.get_local_rank()]
    has_new_name = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # and warns of the old one
    sync_buffers = "forward_sync_buffers" if has_new_name else "broadcast_buffers"
    return create_ddp_model(model, device_ids=device_ids, **{sync_buffers: False})


def unwrap_ddp(model: nn.Module) -> Any:
    """Return the model itself, without DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model
