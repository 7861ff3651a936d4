"""Compare configurations on benchmarks: one table and one figure of measured and published mIoU, time and memory.

tcl-d2 compare --configs configs/shapes/maskclip.yaml configs/shapes/trained.yaml --datasets shapes_val
tcl-d2 compare --configs A.yaml B.yaml --opts TEST.ZERO_SHOT.MAX_IMAGES 100

Each configuration is evaluated in a process of its own, one after the other. Ctrl-C saves what is done, and the same
command goes on from there.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from types import FrameType

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

from ..checkpoint import TCLCheckpointer, warn_if_untrained
from ..config import load_config
from ..data import check_have_labels
from ..engine import Trainer, output_folder
from ..engine.evaluation_pass import evaluation_settings
from ..engine.signals import STOP_SIGNALS
from ..evaluation.comparison import Comparand, write_comparison
from ..evaluation.confusion import PROTOCOL_METRICS, overall_metrics
from ..evaluation.cost import CostMeter
from ..evaluation.progress import fingerprint
from ..evaluation.published import published_for
from ..utils.errors import one_message
from ..utils.files import replacing
from ..utils.locks import locked_folder
from .train import check

# The processes are forked by one that has imported all that they need, and that never used a GPU
_CONTEXT = get_context("forkserver")
_RESULTS = "comparison.json"


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", required=True, help="config files, no two of one name")
    parser.add_argument("--datasets", nargs="+", help="benchmarks, or folders that are; default: the first config's")
    parser.add_argument("--output", type=Path, default=Path("output/compare"), help="folder")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over each config's, last")
    return parser


def main(args: argparse.Namespace) -> None:
    """Evaluate each configuration, and write comparison.md, comparison.csv and comparison.png.

    Args:
        args: of argument_parser.
    """
    with one_message():
        # Check all before the first evaluation
        paths = name_configs(args.configs)
        cfgs, datasets = {}, args.datasets
        for name, path in paths.items():
            cfgs[name] = read_config(path, datasets, args.output / name, args.opts)
            datasets = list(cfgs[name].DATASETS.TEST)  # of the first for all

        # Evaluate
        _CONTEXT.set_forkserver_preload([__name__])
        with locked_folder(args.output, "comparison", "--output"):
            comparands = {}
            for number, (name, cfg) in enumerate(cfgs.items(), start=1):
                print(f"{number} of {len(cfgs)}: {name}", flush=True)
                content = run(name, paths[name], datasets, args.output / name, args.opts)
                measured = content["results"], content["cost"]
                comparands[name] = Comparand(*measured, published_for(cfg), content["measures"])
            table = write_comparison(comparands, args.output)
        print(f"\n{table}\nTable and figure in {args.output}")


# ------------------------------------------------------------------------------------------- configurations


def name_configs(paths: Sequence[str]) -> dict[str, str]:
    """Return paths of configurations by name, the file's without its suffix; ValueError for two of one name."""
    path_by_name = {}
    for path in paths:
        name = Path(path).stem
        if name in path_by_name:
            raise ValueError(
                f"--configs: '{path_by_name[name]}' and '{path}' are both named '{name}', as which they stand in the "
                "table: copy one of them to a file of another name."
            )
        path_by_name[name] = path
    return path_by_name


def read_config(path: str, datasets: Sequence[str] | None, folder: Path, options: Sequence[str]) -> CfgNode:
    """Return a configuration for an evaluation, checked.

    Args:
        path: its file.
        datasets: benchmarks to evaluate on; None for its own.
        folder: for its results.
        options: KEY, VALUE pairs over its values.

    Raises:
        ValueError: it cannot be read or used; names it.
    """
    try:
        cfg = load_config(path, options)
        cfg.DATASETS.TEST = tuple(dict.fromkeys(datasets or cfg.DATASETS.TEST))
        cfg.OUTPUT_DIR = str(folder)
        cfg.freeze()
        check(cfg, eval_only=True, weights=cfg.MODEL.WEIGHTS)
        check_have_labels(cfg.DATASETS.TEST)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(f"--configs {path}: {reason}") from error
    return cfg


# ------------------------------------------------------------------------------------------- evaluations


def run(name: str, *request: object) -> dict:
    """Evaluate a configuration in a new process, to which signals are passed on; exit where that fails or is stopped.

    Args:
        name: of the configuration.
        request: the arguments of read_config.

    Returns:
        what `evaluate` has written.
    """
    process = _CONTEXT.Process(target=evaluate, args=(request, dict(os.environ)))
    process.start()

    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it may have ended
            os.kill(process.pid, number)

    # Wait for it
    handlers = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        process.join()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    # Say how it ended, unless it has said so
    if process.exitcode > 128:
        print(f"stopped in '{name}': the same command goes on from there", file=sys.stderr)
    if process.exitcode < 0:
        reason = signal.Signals(-process.exitcode).name
        sys.exit(f"error: '{name}' was ended by {reason}; the same command goes on from what is done")
    if process.exitcode:
        sys.exit(process.exitcode)
    return read_results(request[2])


def evaluate(request: Sequence, environment: Mapping[str, str]) -> None:
    """Evaluate a configuration, or what is left of it, and write the results and the cost to its folder.

    Args:
        request: the arguments of read_config.
        environment: the variables of the process that asks; the process that forks has those of its start.
    """
    os.setsid()  # Ctrl-C reaches the process that asks alone, which passes it on
    os.environ.update(environment)
    with one_message():
        cfg = read_config(*request)  # which registers folders
        with output_folder(cfg.OUTPUT_DIR, "evaluation"):
            _evaluate(cfg)


def _evaluate(cfg: CfgNode) -> None:
    # Build the model
    folder = Path(cfg.OUTPUT_DIR)
    for name in ("detectron2", "tcl_d2"):
        setup_logger(cfg.OUTPUT_DIR, name=name)
    warn_if_untrained(cfg)
    model = Trainer.build_model(cfg)
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)

    # Go on with the measurement of an earlier run with the same settings
    content = read_results(folder)
    settings = fingerprint("", settings=evaluation_settings(cfg))
    is_same = content.get("settings") == settings
    meter = CostMeter(model, content["cost"] if is_same else {})

    # Evaluate; a signal ends it, with the cost so far saved
    content = {"settings": settings, "results": {}, "measures": {}}
    try:
        results = Trainer.test(cfg, model, resume=True)
        for name in cfg.DATASETS.TEST:
            metrics = overall_metrics(results[name]["sem_seg"])
            counts = {key: results[name][key] for key in ("images", "skipped")}
            content["results"][name] = {"mIoU": metrics["mIoU"], **counts}
            content["measures"][name] = {key: metrics[key] for key in metrics if key not in PROTOCOL_METRICS}
    finally:
        content["cost"] = meter.state()
        with replacing(folder / _RESULTS) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1))


def read_results(folder: Path) -> dict:
    """Return what an evaluation has written to a folder; empty where there is nothing, or a damaged file."""
    try:
        content = json.loads((folder / _RESULTS).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
