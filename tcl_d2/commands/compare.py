"""Compare configurations on benchmarks: one table and one figure of measured and published mIoU, time and memory."""

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..config import load_config
from ..data.checks import check_have_labels
from ..evaluation.comparison import Comparand, write_comparison
from ..evaluation.confusion import PROTOCOL_METRICS
from ..evaluation.cost import read_cost
from ..evaluation.published import published_for
from ..evaluation.together import group_configs
from ..runs.signals import STOP_SIGNALS
from ..utils.errors import expect, named, one_message
from ..utils.locks import locked_folder
from .train import check

_PROGRESS = re.compile(r"(d2\.evaluation|tcl_d2)[\w.]*\]")  # loggers' names in lines of a log


def main(args: argparse.Namespace) -> None:
    """Evaluate each configuration, and write comparison.md, comparison.csv and comparison.png."""
    with one_message():
        # Check all before the first evaluation
        paths = {Path(path).stem: path for path in args.configs}
        expect(len(paths) == len(args.configs), "--configs", " ".join(args.configs), "no two files of one name")
        cfgs, datasets = {}, args.datasets
        for name, path in paths.items():
            cfgs[name] = read_config(path, datasets, args.output / name, args.opts)
            datasets = list(cfgs[name].DATASETS.TEST)  # of the first for all

        # Evaluate
        with locked_folder(args.output, "comparison", "--output"):
            groups = group_configs(cfgs)
            for number, names in enumerate(groups, start=1):
                print(f"{number} of {len(groups)}: {', '.join(names)}", flush=True)
                evaluate([paths[name] for name in names], datasets, args)
            table = write_comparison({name: read_comparand(cfg) for name, cfg in cfgs.items()}, args.output)
        print(f"\n{table}\nTable and figure in {args.output}")


def read_config(path: str, datasets: Sequence[str] | None, folder: Path, options: Sequence[str]) -> CfgNode:
    """Return a configuration for an evaluation on datasets, by default its own; an error names one that is unfit."""
    with named(f"--configs {path}"):
        cfg = load_config(path, options)
        cfg.DATASETS.TEST = tuple(dict.fromkeys(datasets or cfg.DATASETS.TEST))
        cfg.OUTPUT_DIR = str(folder)
        cfg.freeze()
        check(cfg, eval_only=True, weights=cfg.MODEL.WEIGHTS)
        check_have_labels(cfg.DATASETS.TEST)
    return cfg


def evaluate(paths: Sequence[str], datasets: Sequence[str], args: argparse.Namespace) -> None:
    """Evaluate config files together in a new process, to which signals are passed on; exit if it fails or stops."""
    command = [sys.executable, "-m", "tcl_d2.commands.evaluate_together", "--configs", *paths]
    command += ["--datasets", *datasets, "--output", str(args.output), "--opts", *args.opts]
    # In a session of its own, so that Ctrl-C reaches this process alone, which passes it on
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, errors="replace", bufsize=1, start_new_session=True
    )
    handlers = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in STOP_SIGNALS}
    try:
        for line in process.stdout:
            if _PROGRESS.search(line):  # the rest, Detectron2's environment and configuration, is in log.txt
                print(line, end="", flush=True)
        status = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    # Say how it ended, unless it has said so
    names = ", ".join(f"'{Path(path).stem}'" for path in paths)
    if status > 128:
        print(f"stopped in {names}: the same command goes on from there", file=sys.stderr)
    if status < 0:
        reason = signal.Signals(-status).name
        sys.exit(f"error: the evaluation of {names} was ended by {reason}; the same command goes on from what is done")
    if status:
        sys.exit(status)


def read_comparand(cfg: CfgNode) -> Comparand:
    """Return the results, cost and further measures that an evaluation has written to its folder."""
    folder = Path(cfg.OUTPUT_DIR)
    results, measures = {}, {}
    for row in json.loads((folder / "results.json").read_text())["datasets"]:
        name = row.pop("dataset")
        results[name] = {key: row.pop(key) for key in ("mIoU", "images", "skipped")}
        measures[name] = {key: row[key] for key in row if key not in (*PROTOCOL_METRICS, "published mIoU")}
    return Comparand(results, read_cost(folder), published_for(cfg), measures)
