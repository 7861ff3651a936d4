"""Evaluate configurations in one process and one pass over the images, each with its own files: a part of `compare`.

python -m tcl_d2.commands.evaluate_together --configs A.yaml B.yaml --datasets shapes_val --output output/compare
"""

import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path

from detectron2.config import CfgNode

from ..engine import Trainer
from ..evaluation.cost import keep_cost
from ..evaluation.evaluation_pass import evaluation_settings
from ..modeling import ZeroShotSegmentor
from ..runs.output_folder import output_folder
from ..utils.errors import named, one_message
from .compare import read_config
from .options.compare import argument_parser
from .train import prepare

_LOGGERS = ("detectron2", "fvcore", "tcl_d2")


def main(args: argparse.Namespace) -> None:
    """Evaluate each configuration as `tcl-d2 evaluate --resume` does, in the folder of its name."""
    with ExitStack() as stack:
        with one_message():
            cfgs = [read_config(path, args.datasets, args.output / Path(path).stem, args.opts) for path in args.configs]
            models = []
            for path, cfg in zip(args.configs, cfgs):
                with named(f"--configs {path}"):
                    stack.enter_context(output_folder(cfg.OUTPUT_DIR, "evaluation"))
                    models.append(build_model(path, cfg, models))

        for cfg, model in zip(cfgs, models):
            settings = evaluation_settings(cfg)
            stack.enter_context(keep_cost(model, Path(cfg.OUTPUT_DIR), settings, resume=True, together=len(models)))
        with one_message(OSError, ValueError):  # broken images and labels; other errors are bugs
            Trainer.test_together(cfgs, models, resume=True)


def build_model(path: str, cfg: CfgNode, others: list[ZeroShotSegmentor]) -> ZeroShotSegmentor:
    """Start a configuration's log, and build its model on what it has in common with others."""
    model = prepare(cfg, argparse.Namespace(config_file=path, eval_only=True, resume=True))
    for other in others:
        model.share_weights(other)

    # Each configuration has a log file; the terminal has every line once
    for logger in map(logging.getLogger, _LOGGERS):
        on_terminal = [handler for handler in logger.handlers if getattr(handler, "stream", None) is sys.stdout]
        for handler in on_terminal[1:]:
            logger.removeHandler(handler)
    return model


if __name__ == "__main__":
    main(argument_parser().parse_args())
