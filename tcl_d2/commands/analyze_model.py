"""Analyze models: what they are made of, counted and measured, as tables."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from ..config import load_config
from ..evaluation.complexity import build_without_weights, count_operations, count_parameters, image_input
from ..evaluation.cost import CostMeter
from ..modeling import ZeroShotSegmentor
from ..modeling.checks import check_device, check_meta_architecture
from ..utils.errors import one_message

_MEGA, _GIGA = 1e6, 1e9
Row = dict[str, object]  # cells by column


class Analysis(NamedTuple):
    """The row of a model among others, a row for each of its parts, its FLOPs by operator, and its modules as text."""

    summary: Row
    parts: dict[str, Row]
    operators: dict[str, int]
    structure: str

    def add(self, column: str, counts: Mapping[str, Mapping], key: str, unit: float) -> None:
        """Add a column of counts, {part: {key: count}}, to the parts, and their sum to the summary."""
        for name, count in counts.items():
            self.parts.setdefault(name, {"part": name})[column] = count[key] / unit
        self.summary[column] = sum(count[key] for count in counts.values()) / unit


def main(args: argparse.Namespace) -> None:
    """Print what each configuration's model costs."""
    if min(*args.image_size, args.words, args.num_inputs) < 1:
        raise SystemExit("error: --image-size, --words and --num-inputs are at least 1")

    with one_message():
        for path in args.config_file:
            read_config(path, args.opts)  # all errors of configurations before the first analysis
        analyses = [run(path, args) for path in args.config_file]

    # Details of a single model
    if "structure" in args.tasks:
        print(*(analysis.structure for analysis in analyses), sep="\n")
    if len(analyses) == 1 and analyses[0].parts:
        print(as_table(list(analyses[0].parts.values())), end="\n\n")
    if len(analyses) == 1 and "flop" in args.tasks:
        operators = sorted(analyses[0].operators.items(), key=lambda item: -item[1])
        print(as_table([{"operator": name, "GFLOPs": count / _GIGA} for name, count in operators]), end="\n\n")

    print(as_table([analysis.summary for analysis in analyses]))
    if {"speed", "memory"} & set(args.tasks):
        has_gpu = torch.cuda.is_available()
        device = torch.cuda.get_device_name() if has_gpu else f"CPU, {torch.get_num_threads()} threads"
        print(f"Measured on {device}, torch {torch.__version__}")


def as_table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown."""
    return tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".2f")


def read_config(path: str, options: Sequence[str]) -> CfgNode:
    """Return a configuration whose model can be built here, on the CPU if there is no GPU."""
    cfg = load_config(path, options)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    check_device(cfg.MODEL.DEVICE)
    check_meta_architecture(cfg)
    return cfg


def run(path: str, args: argparse.Namespace) -> Analysis:
    """Analyze a configuration's model; to measure it, in a new process, whose memory no other model has used."""
    if not {"speed", "memory"} & set(args.tasks):
        return analyze(path, args)
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(analyze, (path, args))


def analyze(path: str, args: argparse.Namespace) -> Analysis:
    """Build a configuration's model, and count and measure what is asked for."""
    cfg = read_config(path, args.opts)
    logger = logging.getLogger("tcl_d2")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that weights are random is wanted here
    model = build_without_weights(cfg)
    logger.setLevel(level)
    inputs = image_input(cfg, *args.image_size)
    analysis = Analysis({"config": path}, {}, {}, str(model))
    summary = analysis.summary

    # Count
    if "parameter" in args.tasks:
        counts = count_parameters(model)
        for key in ("frozen", "trained"):
            analysis.add(f"{key} parameters, M", counts, key, _MEGA)
    if {"flop", "activation"} & set(args.tasks):
        operations = count_operations(model, inputs, args.words)
        summary["windows"] = "{} of {} x {}".format(operations.windows, *operations.window_size)
    if "flop" in args.tasks:
        analysis.operators.update(operations.by_operator)
        analysis.add("GFLOPs", operations.by_part, "flops", _GIGA)
        shares = sorted(operations.by_part.items(), key=lambda item: -item[1]["flops"])
        summary["GFLOPs by part"] = ", ".join(f"{name} {count['flops'] / _GIGA:.1f}" for name, count in shares)
        summary["GFLOPs of a prompt"] = operations.text / _GIGA
    if "activation" in args.tasks:
        analysis.add("activations, M", operations.by_part, "activations", _MEGA)

    # Measure
    if {"speed", "memory"} & set(args.tasks):
        cost = measure(model, inputs, args.words, args.num_inputs)
        measured = {"speed": ("images a second", cost["images"] / cost["seconds"])}
        measured["memory"] = ("peak memory, MB", cost["peak_memory"])
        summary.update(measured[task] for task in ("speed", "memory") if task in args.tasks)
    return analysis


def measure(model: ZeroShotSegmentor, inputs: dict, num_words: int, count: int) -> dict[str, float]:
    """Segment an image `count` times, after a first time that does not count; return the state of a CostMeter."""
    model.set_text_embeddings(torch.randn(num_words, model.clip.embed_dim))
    meter = CostMeter(model, {})
    for _ in range(1 + count):
        model([inputs])
    return meter.state()
