"""Times and peaks of memory, of the GPU where there is one: what dev/benchmark.py and dev/growth.py measure with."""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from detectron2.config import CfgNode

from tcl_d2 import load_config
from tcl_d2.modeling import TCL
from tcl_d2.utils.memory import process_peak

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# glibc keeps freed memory for later calls. Processes that measure a peak give it back, so that only used memory counts.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def vit_b16(*options: object) -> CfgNode:
    """Return the paper's configuration with random weights, on DEVICE, under KEY, VALUE pairs."""
    model = ["MODEL.META_ARCHITECTURE", "TCL", "MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", DEVICE]
    return load_config(None, [*model, *options])


def trained_like(model: TCL) -> TCL:
    """Open the gates as in a trained model: at 0 the decoder's convolutions would not count."""
    for block in model.grounder.decoder:
        for conv in (block.conv1, block.conv2):
            conv.gate.data.fill_(0.5)
    return model


def low_precisions() -> list[torch.dtype]:
    """Return the low precisions in which this machine computes faster."""
    if DEVICE == "cuda":
        return [torch.bfloat16, torch.float16]
    flags = Path("/proc/cpuinfo").read_text().split()
    return [torch.bfloat16] if {"amx_bf16", "avx512_bf16"} & set(flags) else []


def time_call(function: Callable[[], object]) -> float:
    """Return the seconds of a call, until a GPU has done it too."""
    start = time.perf_counter()
    function()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cpu_time_call(function: Callable[[], object]) -> float:
    """Return the seconds of a call that a CPU has worked for this process, which neighbors do not lengthen much."""
    if DEVICE == "cuda":
        return time_call(function)
    start = time.process_time()
    function()
    return time.process_time() - start


def seconds(*functions: Callable[[], object], repeat: int, time_call: Callable = time_call) -> list[float]:
    """Return the median time of a call of each function; they are called in turn, after a round that does not count."""
    rounds = [[time_call(function) for function in functions] for _ in range(1 + repeat)]
    return [statistics.median(column) for column in zip(*rounds[1:])]


def in_new_process(function: Callable, *args: object) -> object:
    """Call a function in a new process, whose peak of memory is not that of an earlier measurement."""
    os.environ.update(_GIVE_BACK)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # which may start loader workers itself
        return pool.submit(function, *args).result()


def peak_memory(function: Callable[[], object]) -> float:
    """Return the peak of a call's memory in MB, beyond what was held before: of the GPU, or the process (Linux)."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far: it is what the process holds now
    before = process_peak()
    function()
    return process_peak() - before


def machine() -> str:
    """Return the name of the GPU, or of the processor with what it has for low precisions and the threads used."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    flags = {"amx_bf16", "avx512_bf16"} & set(next(line for line in lines if line.startswith("flags")).split())
    return ", ".join([name, *sorted(flags), f"{torch.get_num_threads()} threads"])
