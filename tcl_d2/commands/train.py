"""Train and evaluate, each with all that must be right checked before it begins."""

import argparse
import logging
from contextlib import ExitStack, nullcontext
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoint import TCLCheckpointer
from ..checkpoint.checkpointer import fetch_weights, warn_if_untrained
from ..config import load_config
from ..config.loading import find_config_file
from ..data import check_datasets
from ..data.loader import check_workers
from ..engine import Trainer
from ..engine.training_data import check_training_data, takes_captions
from ..engine.wandb_writer import import_wandb
from ..evaluation.cost import keep_cost
from ..evaluation.dataset_settings import check_dataset_settings
from ..evaluation.evaluation_pass import evaluation_settings
from ..evaluation.report import check_expected_results, verify_results
from ..modeling.checks import check_device, check_meta_architecture
from ..runs.output_folder import output_folder
from ..utils.errors import one_message

_EXPECTED = (OSError, FloatingPointError)  # that end a training, such as a full disk; other errors are bugs


def check(cfg: CfgNode, eval_only: bool, weights: str) -> None:
    """Check the device, the data and the weights, which are downloaded; one error names all that is missing."""
    check_meta_architecture(cfg)
    train = () if eval_only else cfg.DATASETS.TRAIN
    test = cfg.DATASETS.TEST
    if not eval_only and cfg.DATASETS.VAL:
        test = cfg.DATASETS.VAL

    # Run each check, also after another has failed
    problems = []
    for check_part in (
        lambda: check_device(cfg.MODEL.DEVICE),
        lambda: check_datasets(train=train, test=test, with_captions=takes_captions(cfg)),
        lambda: META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).check_encoder(cfg),
        lambda: check_dataset_settings(cfg, test),
        lambda: check_expected_results(cfg),
        lambda: check_training_data(cfg) if train else None,
        lambda: check_workers(cfg, eval_only),
        lambda: fetch_weights(weights),
        lambda: import_wandb() if cfg.WANDB.PROJECT and not eval_only else None,
    ):
        try:
            check_part()
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(str(error))

    # Check that there is something to do
    if eval_only and not test:
        problems.append("DATASETS.TEST is empty: name what to evaluate on, as in DATASETS.TEST \"('shapes_val',)\"")
    if not eval_only and not train:
        problems.append("DATASETS.TRAIN is empty: name what to train on, as in DATASETS.TRAIN \"('shapes_train',)\"")
    if problems:
        raise ValueError("\n  ".join(["cannot start:", *problems]))


def setup(args: argparse.Namespace) -> CfgNode:
    """Return the configuration, checked: defaults, then the file, then KEY VALUE pairs of the command line."""
    cfg = load_config(args.config_file or None, args.opts, args.imports)
    cfg.freeze()
    if args.config_file:
        args.config_file = find_config_file(args.config_file)  # Detectron2's default_setup logs what is in it
    check(cfg, args.eval_only, "" if args.resume else cfg.MODEL.WEIGHTS)
    return cfg


def prepare(cfg: CfgNode, args: argparse.Namespace) -> nn.Module | Trainer:
    """Start the logs, and return the model for an evaluation, or the Trainer for a training."""
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tcl_d2")

    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = TCLCheckpointer(model, cfg.OUTPUT_DIR)
        if not (args.resume and checkpointer.has_checkpoint()):
            warn_if_untrained(cfg)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return model

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer


def main(args: argparse.Namespace) -> dict | None:
    """Train, or evaluate with --eval-only, in one process; return the results of the evaluation on the first one."""
    with ExitStack() as stack:
        with one_message():
            cfg = setup(args)
            stack.enter_context(output_folder(cfg.OUTPUT_DIR, "evaluation" if args.eval_only else "training"))
            model_or_trainer = prepare(cfg, args)

        if args.eval_only:
            model, folder = model_or_trainer, Path(cfg.OUTPUT_DIR)
            is_main = comm.is_main_process()
            cost = keep_cost(model, folder, evaluation_settings(cfg), args.resume) if is_main else nullcontext()
            with one_message(OSError, ValueError), cost:  # broken images and labels; other errors are bugs
                results = Trainer.test(cfg, model, resume=args.resume)
            if is_main:
                verify_results(cfg, results)
            return results
        logging.getLogger("detectron2.engine.train_loop").addFilter(_without_stack)
        with one_message(*_EXPECTED):
            return model_or_trainer.train()


def _without_stack(record: logging.LogRecord) -> bool:
    """Take the stack of calls from what Detectron2 logs of an error whose message says all."""
    if record.exc_info and isinstance(record.exc_info[1], _EXPECTED):
        record.exc_info = None
    return True
